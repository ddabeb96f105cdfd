"""One record to the members of one entry: decode, resize, encode."""

import errno
import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MultipleOf

from common.config import Config, Pixels
from common.files import printable
from common.pool import report_progress
from common.psnr import psnr_from_mse
from data.shards.report import Failure
from data.video.container import TIME_LIMIT, DecodeError, TimeLimitError, is_variable
from data.video.decode import TimedFrame, read_frames
from data.video.encode import encode_video
from data.video.transforms import resize
from data.video.video_record import VideoRecord, open_record, probe_record

EXTENSIONS = {"h264": "mp4", "ffv1": "mkv"}
COMPARED = 16
"""Most frames of a video that are compared with what was packed."""


@dataclass(frozen=True, kw_only=True)
class ShardConfig(Config):
    """What decides the content of shards."""

    short_side: Annotated[Pixels, Ge(16), MultipleOf(2)] = 256
    """Shorter side of the packed videos in pixels, even; smaller videos keep their size."""
    reencode: bool = True
    """Resize and encode again; False stores the files as they are, whatever their size."""
    codec: Literal["h264", "ffv1"] = "h264"
    """H.264 in mp4, or FFV1 in mkv, which loses nothing and is many times larger."""
    crf: Annotated[int, Ge(0), Le(51)] = 12
    """H.264's constant rate factor, 0 (best) to 51. The demo's clips keep a PSNR of 39.6 dB with 12
    and 42.5 dB with 0, which loses nothing but half the resolution of color, at 4 times the size.
    """
    min_frames: Annotated[int, Ge(1)] = 17
    """Videos with fewer frames are left out and counted."""
    max_frames: Annotated[int, Ge(1)] | None = None
    """Of longer videos only this many frames are packed, the first ones; by default all."""
    fps: Annotated[float | None, Gt(0), Le(1000)] = None
    """Frames per second, Hz, of the packed videos: at each time, the frame that is shown then. By
    default all frames are packed, at their mean rate."""
    videos_per_shard: Annotated[int, Ge(1)] = 1024
    """A shard is made of this many videos, less those left out."""
    shard_mb: Annotated[int, Ge(1)] = 512
    """A shard that would grow larger than this many MB (10^6 bytes) is divided, between videos."""
    strict_decoding: bool = True
    """Refuse videos with damaged data; False takes what the decoder makes of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_frames is not None and self.max_frames < self.min_frames:
            raise ValueError(
                f"max_frames={self.max_frames} is less than min_frames={self.min_frames}: "
                "no video could be packed"
            )
        if self.max_frames is not None and not self.reencode:
            raise ValueError("max_frames cuts videos, which reencode=false stores whole. Use one.")
        if self.fps is not None and not self.reencode:
            raise ValueError("fps takes other frames, which reencode=false stores whole. Use one.")


@dataclass(frozen=True)
class Packed:
    """A record ready for a tar; `video` is empty if it is too short."""

    video: bytes
    extension: str
    """Of the video's member, without the dot."""
    frames: int
    height: int
    width: int
    fps: float
    psnr: float | None = None
    """Packed against decoded and resized frames, in dB; None where nothing was encoded."""
    times: tuple[float, ...] | None = None
    """Seconds from the first frame to each, where they are not evenly spaced."""
    notes: tuple[str, ...] = ()
    """What is unusual about the file, and how it was read."""


def pack_record(
    record: VideoRecord, *, config: ShardConfig, time_limit: float = TIME_LIMIT
) -> Packed | Failure:
    """Decode a record once, from its first frame to its last, and encode it as `config` says.

    Frames of a variable rate are packed at their mean rate, with their times beside them, unless
    `config.fps` asks for another. Pixels that are not square are made so. Whatever a file raises,
    in decoding, scaling or encoding, is its record's failure.

    Raises:
        OSError: the disk is full.
    """
    try:
        opened = open_record(
            record, strict=config.strict_decoding, time_limit=time_limit, fps=config.fps
        )
        counted = _Counted(record, opened.frames, config)
        if config.reencode:
            video = encode_video(counted, opened.fps, codec=config.codec, quality=config.crf)
            extension = EXTENSIONS[config.codec]
            psnr = _psnr(counted.compared, video)
        else:
            deque(counted, maxlen=0)
            video, extension = record.path.read_bytes(), record.path.suffix[1:].lower()
            psnr = None
    except Exception as error:  # noqa: BLE001 - whatever a file raises is its failure
        return _failed(record, error)
    times = counted.times
    if len(times) < counted.frames or sorted(set(times)) != times:
        times = []  # unknown, or made up
    return Packed(
        video if counted.frames >= config.min_frames else b"",
        extension,
        counted.frames,
        counted.height,
        counted.width,
        float(opened.fps),
        psnr,
        tuple(round(time - times[0], 6) for time in times) if is_variable(times) else None,
        tuple(opened.notes),
    )


def probe_one(record: VideoRecord, *, config: ShardConfig) -> tuple[int, float] | Failure:
    """Frames and frames per second that `pack_record` would probably give, without decoding."""
    try:
        frames, fps = probe_record(record)
    except Exception as error:  # noqa: BLE001 - whatever a file raises is its failure
        return _failed(record, error)
    if config.fps is not None:
        frames, fps = round(frames * config.fps / fps), config.fps
    return min(frames, config.max_frames or frames), fps


def _failed(record: VideoRecord, error: Exception) -> Failure:
    if isinstance(error, DecodeError):
        cause = "time limit" if isinstance(error, TimeLimitError) else "file"
        return Failure(record.id, str(error), cause)
    path = printable(record.path)
    if isinstance(error, MemoryError):
        return Failure(record.id, f"{path}: not enough memory", "crash")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error  # no fault of the record
    return Failure(record.id, f"{path}: cannot be packed ({str(error) or type(error).__name__})")


def member_json(record: VideoRecord, packed: Packed, class_name: str | None) -> bytes:
    """The entry's `json` member: what a reader without `index.json` wants to know."""
    facts = {
        "label": record.label,
        "class_name": class_name,
        "frames": packed.frames,
        "fps": packed.fps,
        "height": packed.height,
        "width": packed.width,
        "source": printable(record.path.name),
        "start": record.start,
    }
    if packed.times is not None:
        facts["times"] = packed.times
    if packed.notes:
        facts["notes"] = packed.notes
    return json.dumps(facts).encode()


class _Counted:
    """A record's images as they are packed; knows afterwards their number, size, times, and some.

    Iterating decodes and scales them.
    """

    def __init__(
        self, record: VideoRecord, frames: Iterator[TimedFrame], config: ShardConfig
    ) -> None:
        self._path = printable(record.path)
        self._frames = islice(frames, config.max_frames)
        self._short_side = config.short_side if config.reencode else None
        self._every = 1
        self.frames = self.height = self.width = 0
        self.times: list[float] = []
        """Seconds; fewer than frames where the file does not tell them."""
        self.compared: dict[int, np.ndarray] = {}
        """At most `COMPARED` images by number, evenly spread."""

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self._frames:
            image = frame.image
            if self._short_side is not None:
                image = resize(image, self._short_side, frame.pixel_aspect)
            height, width = image.shape[:2]
            if self.frames and (height, width) != (self.height, self.width):
                raise DecodeError(
                    f"{self._path}: frame {self.frames} has {height}x{width} pixels, those "
                    f"before it {self.height}x{self.width}; all must be of one size"
                )
            self.height, self.width = height, width
            if self.frames % self._every == 0:
                self.compared[self.frames] = image
            if len(self.compared) > COMPARED:
                self._every *= 2
                self.compared = {
                    n: kept for n, kept in self.compared.items() if not n % self._every
                }
            self.frames += 1
            if frame.seconds is not None:
                self.times.append(frame.seconds)
            report_progress()
            yield image


def _psnr(images: Mapping[int, np.ndarray], video: bytes) -> float:
    """Peak signal-to-noise ratio in dB of `video`'s frames against `images`, given by number."""
    packed = read_frames(video, list(images))
    errors = [
        np.mean((packed[i].astype(np.float64) - image) ** 2)
        for i, image in enumerate(images.values())
    ]
    return psnr_from_mse(torch.tensor(errors, dtype=torch.float64).mean(), peak=255).item()
