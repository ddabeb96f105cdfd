"""One record to one sample: decode, resize, encode; and tars whose bytes their content decides."""

import json
import os
import signal
import tarfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import IO, Self

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch.nn import functional as F

from data.decode import DecodeError, frame_rate, iterate_frames
from data.encode import encode_video
from data.records import VideoRecord


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """What decides the content of shards."""

    short_side: int = 256
    """Shorter side of the packed videos in pixels, even; smaller videos keep their size."""
    reencode: bool = True
    """Resize and encode again as H.264; False stores the files as they are, whatever their size."""
    crf: int = 12
    """H.264's constant rate factor, 0 (best) to 51; 12 is about 44 dB and hard to tell from 0."""
    min_frames: int = 17
    """Videos with fewer frames are left out and counted."""
    samples_per_shard: int = 1024
    """A shard holds no more videos than this."""
    shard_mb: int = 512
    """A shard grows no larger than this many MB (10^6 bytes), unless by its first video."""
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


@dataclass(frozen=True)
class Packed:
    """A record ready for a tar; `video` is empty if it was too short."""

    video: bytes
    extension: str
    """Of the video's member, without the dot."""
    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class Failed:
    """A record that cannot be decoded."""

    reason: str


def pack_record(record: VideoRecord, config: ShardConfig) -> Packed | Failed:
    """Decode a record once, from its first frame to its last, and encode it as `config` says.

    Frames of a variable rate are packed at their mean rate.
    """
    try:
        fps = frame_rate(record.path)
        images = iterate_frames(record.path, record.start, record.end, strict=config.strict)
        if config.reencode:
            counted = _Counted(resize(image, config.short_side) for image in images)
            video, extension = encode_video(counted, fps, quality=config.crf), "mp4"
        else:
            counted = _Counted(images)
            deque(counted, maxlen=0)
            video, extension = record.path.read_bytes(), record.path.suffix[1:].lower()
    except DecodeError as error:
        return Failed(str(error))
    if counted.frames < config.min_frames:
        video = b""
    return Packed(video, extension, counted.frames, counted.height, counted.width, float(fps))


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


class Packer:
    """Packed records by number, worked out ahead by a pool of processes."""

    def __init__(self, records: Sequence[VideoRecord], config: ShardConfig, workers: int) -> None:
        self._records = records
        self._config = config
        self._ahead = max(1, 2 * workers)
        self._results: dict[int, Future[Packed | Failed]] = {}
        self._pool = _pool(workers) if workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def get(self, number: int) -> Packed | Failed:
        """The result for record `number`; asking again for the same one costs nothing."""
        for passed in [key for key in self._results if key < number]:
            del self._results[passed]
        for ahead in range(number, min(number + self._ahead, len(self._records))):
            if ahead not in self._results:
                self._results[ahead] = self._submit(self._records[ahead])
        try:
            return self._results[number].result()
        except BrokenProcessPool:
            raise ValueError(
                f"a worker process died near video {self._records[number].id!r}, probably out of "
                "memory. Use fewer workers, then run again: it goes on from the last full shard."
            ) from None

    def _submit(self, record: VideoRecord) -> "Future[Packed | Failed]":
        if self._pool is not None:
            return self._pool.submit(pack_record, record, self._config)
        done: Future[Packed | Failed] = Future()
        done.set_result(pack_record(record, self._config))
        return done


def _pool(workers: int) -> ProcessPoolExecutor:
    """Processes forked from one that has imported this module and started no threads."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, context, initializer=_start_worker)


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its pool: workers would wait for it for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Counted:
    """Passes images on; knows afterwards how many they were and the size of the last."""

    def __init__(self, images: Iterator[np.ndarray]) -> None:
        self._images = images
        self.frames = self.height = self.width = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for image in self._images:
            self.frames += 1
            self.height, self.width = image.shape[:2]
            yield image
