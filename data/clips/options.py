"""What a clip is: frames of a video, a part of the picture; and how many may be unreadable."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le, Lt
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from common.config import Config, Frames, Pixels
from data.video.container import Source
from data.video.decode import Decoder, check_decoder, read_frames
from data.video.transforms import Filter, fit

log = logging.getLogger(__name__)

Size = tuple[int, int, int]
"""Frames, height and width."""


class Cut(NamedTuple):
    """What a clip shows of its video; all but the start as in `fit`."""

    start: int
    """First source frame."""
    crop: tuple[float, float] = (0.5, 0.5)
    """Position of the crop in y and x, from 0 to 1."""
    flip: bool = False
    """Whether it is mirrored."""
    zoom: float = 1.0
    """Scale before the crop, in multiples of the one that just covers a clip."""


@dataclass(frozen=True, kw_only=True)
class ClipOptions(Config):
    """Clips cut from videos: their middle, unless a subclass chooses otherwise."""

    frames: Frames = 17
    """Frames per clip; 1 gives images."""
    stride: Frames = 1
    """Source frames from one clip frame to the next."""
    height: Pixels = 256
    """Clip height, pixels."""
    width: Pixels = 256
    """Clip width, pixels."""
    short_clips: Literal["skip", "loop", "shrink_stride"] = "skip"
    """Videos shorter than a clip: left out; repeated from their start; or read at the largest
    stride that fits (left out where even 1 does not)."""
    filter: Filter = "bicubic"
    """Kernel of the antialiased resize."""
    strict_decoding: bool = True
    """Refuse videos with damaged data; otherwise decoders hide it in gray or smeared frames."""
    decoder: Decoder = "pyav"
    """torchcodec, an optional package, takes less time and gives the same frames, with colors that
    differ by about a level; it needs strict_decoding=false."""
    max_error_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Fraction of entries that may fail to decode and be replaced by others; 0 stops at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decoder(self.decoder, self.strict_decoding)

    @property
    def size(self) -> Size:
        """Frames, height and width of a clip."""
        return self.frames, self.height, self.width

    @property
    def span(self) -> int:
        """Source frames that one clip covers."""
        return (self.frames - 1) * self.stride + 1

    def strides(self, frames: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Stride of clips from videos of `frames` frames; 0 where the policy leaves one out."""
        short = np.zeros_like(frames)
        if self.short_clips == "loop":
            short = np.where(frames > 0, self.stride, 0)
        elif self.short_clips == "shrink_stride":
            fitting = (frames - 1) // max(1, self.frames - 1)
            short = np.where(frames >= self.frames, fitting, 0)
        return np.where(frames >= self.span, self.stride, short)

    def slack(self, frames: int, stride: int) -> int:
        """The last possible first frame of a clip; 0 for a looped one."""
        return max(0, frames - 1 - (self.frames - 1) * stride)

    def clip(self, source: Source, frames: int, stride: int, cut: Cut) -> UInt8[Tensor, "c t h w"]:
        """The clip of a video of `frames` frames.

        Only the clip's frames are kept and resized. Past its end a video starts again.

        Raises:
            DecodeError: the video cannot be read.
        """
        wanted = ((cut.start + np.arange(self.frames) * stride) % frames).tolist()
        pixels = read_frames(
            source, wanted, strict=self.strict_decoding, decoder=self.decoder, frames=frames
        )
        _, crop, flip, zoom = cut
        size, filter = (self.height, self.width), self.filter
        pixels = torch.from_numpy(pixels)
        return fit(pixels, *size, crop=crop, flip=flip, zoom=zoom, filter=filter)

    def choose(self, slack: int, random: torch.Generator) -> Cut:
        """One clip that may start at frames 0 to `slack`."""
        return Cut(slack // 2)


@dataclass(frozen=True, kw_only=True)
class AugmentedClipOptions(ClipOptions):
    """Clips for training, cut at random."""

    start: Literal["random", "center"] = "random"
    """First frame: anew each epoch, or so that the clip lies in the middle of its video."""
    crop: Literal["random", "center"] = "random"
    """Crop after the resize that keeps the aspect ratio."""
    max_zoom: Annotated[float, Ge(1), Le(64)] = 1.0
    """Largest scale before the crop, in multiples of the size that just covers a clip. The scale is
    drawn anew each epoch and never exceeds the frames' own size; 1 shows as much as fits in."""
    flip: bool = False
    """Mirror half of the clips, chosen anew each epoch. Not for time-lapse skies."""

    def choose(self, slack: int, random: torch.Generator) -> Cut:
        """One clip that may start at frames 0 to `slack`, as the options and `random` decide."""
        at, y, x, side = torch.rand(4, generator=random, dtype=torch.float64).tolist()
        start = int(at * (slack + 1)) if self.start == "random" else slack // 2
        crop = (y, x) if self.crop == "random" else (0.5, 0.5)
        zoom = 1.0
        if self.max_zoom > 1:
            zoom = self.max_zoom ** torch.rand((), generator=random, dtype=torch.float64).item()
        return Cut(start, crop, self.flip and side < 0.5, zoom)


class UnreadableVideos:
    """Keys of entries that could not be read; refuses to grow above `limit` of `total`."""

    def __init__(self, limit: float, total: int):
        self.limit = limit
        self.total = total
        self.reasons: dict[str, str] = {}

    def add(self, key: str, reason: str) -> None:
        """Count an entry, once, and log it.

        Raises:
            ValueError: more than the allowed fraction of all entries is unreadable.
        """
        if key in self.reasons:
            return
        self.reasons[key] = reason
        if len(self.reasons) > self.limit * self.total:
            raise ValueError(
                f"{key}: {reason}. That makes {len(self.reasons)} unreadable of {self.total}, "
                f"but max_error_fraction={self.limit}. Pack the data again or raise the limit."
            )
        log.warning("%s: skipped: %s", key, reason)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items; of what each says in `unreadable`, count and list the entries."""
    unreadable = [item.pop("unreadable", ()) for item in items]
    counts = torch.tensor([len(entries) for entries in unreadable])
    return {
        **default_collate(items),
        "unreadable_clips": counts,
        "unreadable": list(chain(*unreadable)),
    }


def report_unreadable(
    batches: Iterator[dict[str, Any]], unreadable: UnreadableVideos | None
) -> Iterator[dict[str, Any]]:
    """Take the workers' `unreadable` entries out of batches, and count them in this process.

    Args:
        unreadable: None for data of which none can be unreadable.
    """
    for batch in batches:
        for key, reason in batch.pop("unreadable"):
            assert unreadable is not None
            unreadable.add(key, reason)
        yield batch
        del batch  # `engine.prefetch.received` frees it
