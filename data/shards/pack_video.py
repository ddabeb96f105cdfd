"""One record to one sample: decode, resize, encode; and tars whose bytes their content decides."""

import json
import tarfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch.nn import functional as F

from common.psnr import psnr_from_mse
from data.video.decode import TIME_LIMIT, DecodeError, read_frames
from data.video.encode import encode_video
from data.video.record_frames import open_record, probe_record
from data.video.video_record import VideoRecord

COMPARED = 16
"""At most so many frames of a video are compared with what was packed."""


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """What decides the content of shards."""

    short_side: int = 256
    """Shorter side of the packed videos in pixels, even; smaller videos keep their size."""
    reencode: bool = True
    """Resize and encode again as H.264; False stores the files as they are, whatever their size."""
    crf: int = 12
    """H.264's constant rate factor, 0 (best) to 51. The demo's clips keep a PSNR of 39.6 dB with 12
    and 42.5 dB with 0, which loses nothing but half the resolution of colour, at 4 times the size.
    """
    min_frames: int = 17
    """Videos with fewer frames are left out and counted."""
    max_frames: int | None = None
    """Of longer videos only this many frames are packed, the first ones; by default all."""
    samples_per_shard: int = 1024
    """A shard is made of this many videos, less those left out."""
    shard_mb: int = 512
    """A shard that would grow larger than this many MB (10^6 bytes) is divided, between videos."""
    strict: bool = True
    """Refuse videos with damaged data; False takes what the decoder makes of them."""

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise ValueError(f"short_side={self.short_side} must be even and at least 16 pixels")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf={self.crf} must be between 0 (best) and 51")
        for name in ("min_frames", "samples_per_shard", "shard_mb"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_frames is not None and self.max_frames < self.min_frames:
            raise ValueError(
                f"max_frames={self.max_frames} is less than min_frames={self.min_frames}: "
                "no video could be packed"
            )
        if self.max_frames is not None and not self.reencode:
            raise ValueError("max_frames cuts videos, which reencode=false stores whole. Use one.")


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


@dataclass(frozen=True)
class Failed:
    """A record that cannot be decoded."""

    reason: str


def pack_record(
    record: VideoRecord, config: ShardConfig, time_limit: float = TIME_LIMIT
) -> Packed | Failed:
    """Decode a record once, from its first frame to its last, and encode it as `config` says.

    Frames of a variable rate are packed at their mean rate.
    """
    try:
        fps, images = open_record(record, strict=config.strict, time_limit=time_limit)
        if config.reencode:
            images = (resize(image, config.short_side) for image in images)
            counted = _Counted(record, images, config.max_frames)
            video, extension = encode_video(counted, fps, quality=config.crf), "mp4"
            psnr = _psnr(counted.samples, video)
        else:
            counted = _Counted(record, images)
            deque(counted, maxlen=0)
            video, extension = record.path.read_bytes(), record.path.suffix[1:].lower()
            psnr = None
    except DecodeError as error:
        return Failed(str(error))
    if counted.frames < config.min_frames:
        video = b""
    return Packed(video, extension, counted.frames, counted.height, counted.width, float(fps), psnr)


def probe_one(record: VideoRecord, config: ShardConfig, _: float) -> Packed | Failed:
    """What `pack_record` would probably give, without decoding: `video` is never there."""
    try:
        frames, fps = probe_record(record)
    except DecodeError as error:
        return Failed(str(error))
    return Packed(b"", "", min(frames, config.max_frames or frames), 0, 0, fps)


def resize(image: UInt8[np.ndarray, "h w 3"], short_side: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Scale an image down to `short_side`, antialiased; never up. Both sides come out even.

    The aspect is kept to the rounding of the longer side to an even number. An image that is not
    scaled loses its last row or column if it is odd.
    """
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return image[: height - height % 2, : width - width % 2]
    size = [2 * round(side * scale / 2) for side in (height, width)]
    pixels = rearrange(torch.from_numpy(image), "h w c -> 1 c h w")
    scaled = F.interpolate(pixels, size, mode="bicubic", antialias=True)
    return rearrange(scaled, "1 c h w -> h w c").numpy()


class TarWriter:
    """Writes a tar whose bytes depend on its members' names and contents alone."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = sha256()
        self.size = 0
        """Bytes so far."""

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a member; returns its contents' (offset, size) in the file."""
        info = tarfile.TarInfo(name)  # owner 0, time 0
        info.size, info.mode = len(data), 0o644
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
        offset = self.size
        self._write(data)
        self._write(bytes(-self.size % tarfile.BLOCKSIZE))
        return offset, len(data)

    def close(self) -> str:
        """Write the end mark; returns the sha256 of the whole tar."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


def member_json(record: VideoRecord, packed: Packed, class_name: str | None) -> bytes:
    """The sample's `json` member: what a reader without `index.json` wants to know."""
    facts = {
        "label": record.label,
        "class_name": class_name,
        "frames": packed.frames,
        "fps": packed.fps,
        "height": packed.height,
        "width": packed.width,
        "source": record.path.name,
        "start": record.start,
    }
    return json.dumps(facts).encode()


class Progress:
    """What this process works on and when it last got a frame of it, for whoever watches."""

    path: Path | None = None
    since = 0.0


class _Counted:
    """Passes a record's images on; knows afterwards their number, size, and some of them."""

    def __init__(
        self, record: VideoRecord, images: Iterator[np.ndarray], limit: int | None = None
    ) -> None:
        self._record = record
        self._images = islice(images, limit)
        self._every = 1
        self.frames = self.height = self.width = 0
        self.samples: dict[int, np.ndarray] = {}
        """At most `COMPARED` images by number, evenly spread."""

    def __iter__(self) -> Iterator[np.ndarray]:
        for image in self._images:
            height, width = image.shape[:2]
            if self.frames and (height, width) != (self.height, self.width):
                raise DecodeError(
                    f"{self._record.path}: frame {self.frames} has {height}x{width} pixels, those "
                    f"before it {self.height}x{self.width}; all must be of one size"
                )
            self.height, self.width = height, width
            self._sample(image)
            self.frames += 1
            Progress.since = time.monotonic()
            yield image

    def _sample(self, image: np.ndarray) -> None:
        if self.frames % self._every:
            return
        if len(self.samples) == COMPARED:
            self._every *= 2
            self.samples = {n: kept for n, kept in self.samples.items() if not n % self._every}
        if self.frames % self._every == 0:
            self.samples[self.frames] = image


def _psnr(images: Mapping[int, np.ndarray], video: bytes) -> float:
    """Peak signal-to-noise ratio in dB of `video`'s frames against `images`, given by number."""
    packed = read_frames(video, list(images))
    errors = [
        np.mean((packed[i].astype(np.float64) - image) ** 2)
        for i, image in enumerate(images.values())
    ]
    return psnr_from_mse(torch.tensor(errors, dtype=torch.float64).mean(), peak=255).item()
