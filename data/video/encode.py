"""Frames to video files, and between pixel values 0..255 and -1..1."""

import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from common.files import atomic_path
from common.pixels import to_float
from data.video.container import round_rate
from data.video.transforms import EXACT

BT709 = 1
"""The number of this color matrix in H.264's and FFmpeg's tables."""
MAX_SIDE = 16_384
"""Pixels; the largest side that H.264 can have."""


@dataclass(frozen=True)
class _Codec:
    encoder: str
    suffixes: tuple[str, ...]
    pixels: str
    options: dict[str, str]
    container: dict[str, str]


CODECS = {
    "h264": _Codec(
        encoder="libx264",
        suffixes=(".mp4", ".mov", ".mkv"),
        pixels="yuv420p",
        options={"preset": "medium", "x264-params": "cpu-independent=1"},
        container={"movflags": "+faststart"},
    ),
    "ffv1": _Codec(
        encoder="ffv1",
        suffixes=(".mkv",),
        pixels="bgr0",
        options={"level": "3", "g": "1"},
        container={},
    ),
}
"""What `write_video` can write.

Every frame of ffv1 is a sync frame, so that a clip is read from its first frame on: a third of the
time for 5 % more bytes. Without `cpu-independent`, x264 reads memory that it never set on CPUs with
AVX-512, so that equal frames sometimes give other bytes.
"""


def write_video(
    path: str | Path,
    frames: UInt8[np.ndarray, "t h w 3"] | Iterable[UInt8[np.ndarray, "h w 3"]],
    fps: float | Fraction,
    *,
    codec: str = "h264",
    quality: int = 18,
) -> None:
    """Write RGB frames as a video, atomically; equal input gives equal bytes.

    Args:
        path: `.mp4` for h264, which plays in browsers; `.mkv` for ffv1, which is lossless.
        frames: RGB in 0..255, all of one size, at least one; may be an iterator.
        fps: frames per second, above 0.
        codec: `h264` stores color at half resolution and pads odd sizes to even ones by repeating
            the last row or column; `ffv1` gives back every pixel.
        quality: h264's constant rate factor, 0 (best) to 51; ffv1 takes no notice.

    Raises:
        ValueError: no frames, frames of another type or of several sizes, or of a size that the
            codec does not take, or a bad option.
    """
    path = Path(path)
    _check_options(str(path), path.suffix.lower(), fps, codec, quality)
    with atomic_path(path) as temporary:
        _write(temporary, str(path), frames, round_rate(fps), codec, quality)


def encode_video(
    frames: UInt8[np.ndarray, "t h w 3"] | Iterable[UInt8[np.ndarray, "h w 3"]],
    fps: float | Fraction,
    *,
    codec: str = "h264",
    quality: int = 18,
) -> bytes:
    """Like `write_video`, but returns the file's bytes: an mp4 for h264, an mkv for ffv1."""
    with tempfile.TemporaryDirectory() as folder:
        suffix = CODECS[codec].suffixes[0] if codec in CODECS else ""
        _check_options("video", suffix, fps, codec, quality)
        path = Path(folder, "video" + suffix)
        _write(path, "video", frames, round_rate(fps), codec, quality)
        return path.read_bytes()


def to_uint8(video: Float[Tensor, "c t h w"]) -> UInt8[np.ndarray, "t h w c"]:
    """Pixels from -1..1 to 0..255, rounded; values outside are clamped.

    Raises:
        ValueError: a value is not finite.
    """
    if not torch.isfinite(video).all():
        raise ValueError(
            "the video holds values that are not finite; a frame cannot be made of them"
        )
    levels = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(levels, "c t h w -> t h w c").cpu().numpy()


def from_uint8(frames: UInt8[np.ndarray, "t h w c"]) -> Float[Tensor, "c t h w"]:
    """Pixels from 0..255 to float32 in -1..1; `to_uint8` gives back every level."""
    video = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "t h w c -> c t h w")
    return to_float(video)


def _check_options(name: str, suffix: str, fps: float | Fraction, codec: str, quality: int) -> None:
    if codec not in CODECS:
        raise ValueError(f"{name}: codec {codec!r} is not one of {sorted(CODECS)}")
    if suffix not in CODECS[codec].suffixes:
        allowed = " or ".join(CODECS[codec].suffixes)
        raise ValueError(f"{name}: {codec} needs a name ending in {allowed}, not {suffix!r}")
    if not 0 <= quality <= 51:
        raise ValueError(f"{name}: quality={quality} must be between 0 (best) and 51")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{name}: fps={fps} must be above 0")


def _write(
    target: Path, name: str, frames: Iterable[np.ndarray], fps: Fraction, codec: str, quality: int
) -> None:
    """Encode to `target`; `name` is the file's in errors."""
    images = iter(frames)
    first = next(images, None)
    if first is None:
        raise ValueError(f"{name}: no frames to write")
    if codec == "h264" and max(first.shape[:2]) > MAX_SIDE:
        height, width = first.shape[:2]
        raise ValueError(
            f"{name}: frames of {height}x{width} pixels; H.264 takes at most {MAX_SIDE} a side"
        )
    options = {"fflags": "+bitexact", **CODECS[codec].container}  # no dates, no random identifiers
    with av.open(str(target), "w", options=options) as container:
        stream: VideoStream | None = None
        for number, image in enumerate(chain([first], images)):
            if image.dtype != np.uint8 or image.shape != (*first.shape[:2], 3):
                raise ValueError(
                    f"{name}: frame {number} is {image.dtype} {image.shape}; all frames must be "
                    f"uint8 (height, width, 3) and of the first one's size, {first.shape[:2]}"
                )
            frame = _frame(image, codec)
            frame.pts = number
            stream = stream or _add_stream(container, frame, fps, codec, quality)
            container.mux(stream.encode(frame))
        assert stream is not None  # the first frame made it
        container.mux(stream.encode(None))


def _add_stream(
    container: OutputContainer, frame: VideoFrame, fps: Fraction, codec: str, quality: int
) -> VideoStream:
    options = dict(CODECS[codec].options)
    if codec == "h264":
        options["crf"] = str(quality)
    stream = container.add_stream(CODECS[codec].encoder, rate=fps, options=options)
    assert isinstance(stream, VideoStream)
    context = stream.codec_context
    context.thread_count = 1  # the number of threads changes the bytes
    context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name
    context.time_base = 1 / fps
    if codec == "h264":
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG
    return stream


def _frame(image: np.ndarray, codec: str) -> VideoFrame:
    if codec == "h264":
        height, width = image.shape[:2]
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    pixels, matrix = CODECS[codec].pixels, Colorspace.ITU709
    return frame.reformat(format=pixels, dst_colorspace=matrix, interpolation=EXACT, threads=1)
