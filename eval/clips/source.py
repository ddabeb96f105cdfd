"""Clips to evaluate: which frames of which videos, one clip per video, chosen by a seed."""

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.machine import one_thread
from common.pixels import to_float
from common.seeding import fold, generator
from data.video.encode import from_uint8
from data.video.transforms import fit
from data.video.video_record import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.video_stores import Video, open_store

SHOWN = 3  # unusual videos that are named
CLIP_FIELDS = tuple(field.name for field in fields(ClipProtocol))
LOSSLESS = {
    *("bmp", "ffv1", "ffvhuff", "huffyuv", "magicyuv", "png", "qtrle", "rawvideo", "utvideo"),
}
"""FFmpeg's names of codecs, and file name extensions of images, that keep every pixel."""


class ClipSource(Dataset):
    """One clip from each of up to `count` videos of a folder, the same in every process.

    Videos too short for the protocol are passed over and counted; generated ones must all be long
    enough. Only one batch is held at a time, whatever the number of clips.

    Args:
        folder: packed shards (with `index.json`), video files at any depth, or folders of images
            at any depth, each the frames of one video.
        protocol: what is cut out.
        generated: videos are samples of a model: they must share size, length and frame rate, and
            lossy files bring a warning, because compression alone moves the score.
        on_error: a video that cannot be read stops the evaluation (`stop`), or is left out and
            another one taken for it (`skip`); every clip is then read once before the work.
        progress: show a bar while videos are probed.

    Attributes:
        ids, starts: the clips, in the order they are read.
        codecs: how the videos are stored; of packed ones, only the first is looked at.
        too_short: number of videos passed over.
        unreadable: videos left out because they cannot be read, each with the reason.

    Raises:
        ValueError: no such folder, no videos, none long enough, or sizes that differ where the
            protocol names none. `DecodeError`, a `ValueError`, for an unreadable video.
    """

    def __init__(
        self,
        folder: str | Path,
        protocol: ClipProtocol,
        *,
        generated: bool = False,
        on_error: Literal["stop", "skip"] = "stop",
        progress: bool = True,
    ):
        self.folder = Path(folder)
        self.protocol = protocol
        self.generated = generated
        self.on_error: Literal["stop", "skip"] = on_error
        self.too_short = 0
        self.unreadable: dict[str, str] = {}
        self._store = open_store(self.folder)
        self._videos = self._choose(progress)
        self.ids = [video.id for video in self._videos]
        self.starts = [protocol.first_frame(video.id, video.frames) for video in self._videos]
        known = {video.codec for video in self._videos if video.codec}
        self.codecs = sorted(known or {self._store.codec(self.ids[0])})
        self._content: str | None = None
        if protocol.height is None or generated:
            self._check_equal("size", lambda video: (video.height, video.width))
        if generated:
            self._check_generated()

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int) -> tuple[str, Float[Tensor, "c t h w"]]:
        """Id and clip, float32 in [-1, 1]."""
        video, protocol = self._videos[index], self.protocol
        clip = self.frames(index, protocol.indices(self.starts[index]))
        if protocol.noise:
            draws = generator(protocol.seed, "demo noise", video.id)
            clip = (clip + protocol.noise * torch.randn(clip.shape, generator=draws)).clamp(-1, 1)
        return video.id, clip

    def frames(self, index: int, numbers: Sequence[int]) -> Float[Tensor, "c t h w"]:
        """Frames of the video of clip `index`, by their numbers, at the protocol's size."""
        return self.sized(self._store.read(self.ids[index], numbers))

    def num_frames(self, index: int) -> int:
        """Frames of the video of clip `index`."""
        return self._videos[index].frames

    def beyond(self, count: int) -> "ClipSource":
        """The clips without the first `count`."""
        rest = copy.copy(self)
        rest._videos, rest._content = self._videos[count:], None
        rest.ids, rest.starts = self.ids[count:], self.starts[count:]
        return rest

    def sized(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float[Tensor, "c t h w"]:
        """Frames at the protocol's size, float32 in [-1, 1]."""
        height, width = self.protocol.height, self.protocol.width
        if height is None or width is None:
            return from_uint8(frames)
        return to_float(fit(torch.from_numpy(frames), height, width))

    def batches(
        self, batch_size: int, workers: int = 0, rank: int = 0, processes: int = 1
    ) -> Iterator[tuple[int, list[str], Float[Tensor, "b c t h w"]]]:
        """Number of the first clip, ids and clips, in order; the last batch may be smaller.

        Of several processes, each gets every `processes`-th batch from the `rank`-th on.
        """
        firsts = range(0, len(self), batch_size)[rank::processes]
        loader = DataLoader(
            self,
            batch_sampler=[list(range(i, min(i + batch_size, len(self)))) for i in firsts],
            num_workers=workers,
            worker_init_fn=one_thread,
            generator=torch.Generator(),
        )
        for first, (ids, clips) in zip(firsts, loader, strict=True):
            yield first, list(ids), clips

    @property
    def lossy(self) -> list[str]:
        """Those of `codecs` that do not keep every pixel."""
        return [codec for codec in self.codecs if codec not in LOSSLESS]

    @property
    def rate(self) -> float | None:
        """Clip frames per second: the median over the videos of frame rate / stride, Hz.

        None for folders of frames: images have no rate.
        """
        rates = [video.fps for video in self._videos if video.fps is not None]
        return median(rates) / self.protocol.stride if rates else None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first clip, pixels."""
        protocol, first = self.protocol, self._videos[0]
        return protocol.height or first.height, protocol.width or first.width

    @property
    def is_cropped(self) -> bool:
        """Whether a video has another shape than the clips, so that its borders are cut off."""
        height, width = self.size
        return any(v.height * width != v.width * height for v in self._videos)

    def content(self) -> str:
        """Hash of the protocol and of every clip's id, start and bytes; these are read once."""
        if self._content is None:
            digest = hashlib.sha256(json.dumps(asdict(self.protocol), sort_keys=True).encode())
            for id, start in zip(self.ids, self.starts, strict=True):
                digest.update(f"\0{id}\0{start}\0{self._store.digest(id)}".encode())
            self._content = digest.hexdigest()
        return self._content

    def notes(self, which: str) -> list[str]:
        """What a reader of a score has to know about these clips, `real` or `generated`."""
        notes, (height, width) = [], self.size
        if self.unreadable:
            named = "; ".join(f"{id} ({reason})" for id, reason in self.unreadable.items())
            count = len(self.unreadable)
            notes.append(f"{count} {which} videos cannot be read and were left out: {named}.")
        if unusual := {video.id: "; ".join(video.notes) for video in self._videos if video.notes}:
            named = ", ".join(f"{id} ({note})" for id, note in islice(unusual.items(), SHOWN))
            more = ", ..." if len(unusual) > SHOWN else ""
            notes.append(
                f"{len(unusual)} of {len(self)} {which} videos are unusual and were read frame by "
                f"frame as they are: {named}{more}. make_shards.py --fps packs at a constant rate, "
                "with square pixels."
            )
        if small := sum(v.height < height or v.width < width for v in self._videos):
            notes.append(
                f"{small} of {len(self)} {which} videos are smaller than {height} x {width} pixels "
                "and were enlarged, which adds blur and no detail."
            )
        return notes

    def describe(self) -> dict[str, Any]:
        """What a result has to record about this side."""
        return {
            "folder": str(self.folder),
            "kind": self._store.kind,
            "clips": len(self),
            "videos": len(self._store.ids()),
            "too_short": self.too_short,
            "unreadable": self.unreadable,
            "clip_fps": self.rate,
            "codecs": self.codecs,
            "content": self.content(),
            **asdict(self.protocol),
        }

    def _choose(self, progress: bool) -> list[Video]:
        """Videos in an order drawn from the seed, which adding other videos does not change."""
        protocol = self.protocol
        ids = sorted(self._store.ids(), key=lambda id: fold(protocol.seed, "clip order", id))
        if not ids:
            raise ValueError(
                f"{self.folder}: no videos there ({', '.join(VIDEO_EXTENSIONS)}), and no folders "
                f"of images ({', '.join(IMAGE_EXTENSIONS)})"
            )
        wanted = len(ids) if protocol.num_clips is None else min(protocol.num_clips, len(ids))
        chosen: list[Video] = []
        with tqdm(total=wanted, desc=f"probe {self.folder.name}", disable=not progress) as bar:
            for id in ids:
                video = self._readable(id)
                if video is None:
                    continue
                if video.frames >= protocol.span:
                    chosen.append(video)
                    bar.update()
                elif self.generated:
                    raise ValueError(
                        f"{self.folder}: generated video {id} has {video.frames} frames, but the "
                        f"protocol needs {protocol.span}. Lower frames, stride or skip."
                    )
                else:
                    self.too_short += 1
                if len(chosen) == wanted:
                    break
        if not chosen and self.unreadable:
            raise ValueError(
                f"{self.folder}: {len(self.unreadable)} of {len(ids)} videos cannot be read, the "
                f"others are too short: {next(iter(self.unreadable.values()))}"
            )
        if not chosen:
            raise ValueError(
                f"{self.folder}: none of {len(ids)} videos has {protocol.span} frames "
                f"({protocol.frames} at stride {protocol.stride} after {protocol.skip}). "
                "Lower frames or stride."
            )
        return chosen

    def _readable(self, id: str) -> Video | None:
        """What is known of a video; None for one to be skipped, which `unreadable` then names."""
        if self.on_error == "stop":
            return self._store.video(id)
        try:
            video = self._store.video(id)
            if video.frames >= self.protocol.span:
                start = self.protocol.first_frame(id, video.frames)
                self._store.read(id, self.protocol.indices(start))
        except ValueError as error:
            self.unreadable[id] = str(error)
            return None
        return video

    def _check_generated(self) -> None:
        self._check_equal("length", lambda video: video.frames)
        self._check_equal("frame rate", lambda video: video.fps and round(video.fps, 3))
        if lossy := self.lossy:
            warnings.warn(
                f"{self.folder}: generated videos are stored lossily ({', '.join(lossy)}). "
                "Compression alone moves the score; write them with a lossless codec such as ffv1.",
                stacklevel=4,
            )

    def _check_equal(self, what: str, value: Callable[[Video], Any]) -> None:
        if self.generated:
            advice = "Generated videos must be alike: one folder per model and setting."
        else:
            advice = "Give the height and width to resize to: those of the generated videos."
        first = self._videos[0]
        for video in self._videos:
            if value(video) != value(first):
                raise ValueError(
                    f"{self.folder}: {what} differs: {first.id} has {value(first)}, "
                    f"{video.id} has {value(video)}. {advice}"
                )
