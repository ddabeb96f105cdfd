"""Exact frames out of video files: by packet timestamps where these can be trusted, else by count.

Seeking by time returns wrong frames on variable frame rates and on AVI with packed B-frames. Here
one pass over the packets (nothing is decoded) gives the sorted presentation timestamps (pts), which
number the frames. Reading seeks to the keyframe at or before the first wanted frame and takes
frames whose pts equals the expected one. Where timestamps are missing, repeated or known to be made
up by the demuxer, or where a seek lands wrongly, frames are counted from the start of the file.
"""

import io
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from jaxtyping import UInt8

Source = Path | str | bytes
"""A file, or the bytes of one."""

COUNTED_CONTAINERS = {"avi", "mpeg", "mpegts"}
"""Their timestamps are made up, wrap, or count packets that hold no frame."""
COUNTED_CODECS = {"vp8"}
"""Its invisible frames have packets and timestamps of their own."""

EXACT = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.BITEXACT
)
"""Colours by the formula, equal on every CPU; FFmpeg's default is faster, but a level darker."""


class DecodeError(ValueError):
    """A video that cannot be read; the message names the file and the cause."""


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds out."""

    frames: int
    """Frames that decoding gives."""
    height: int
    """Pixels, after the rotation the file asks for."""
    width: int
    """Pixels, after the rotation the file asks for."""
    fps: float
    """Mean frame rate in Hz."""
    codec: str
    """FFmpeg's name of the codec, such as `h264`."""


@dataclass(frozen=True)
class _Timeline:
    """The pts of every frame in display order, and those of the keyframes."""

    pts: list[int]
    keys: list[int]


def probe(source: Source, *, strict: bool = True) -> VideoInfo:
    """Count a video's frames and measure them; decodes one frame, or all where packets mislead.

    Args:
        source: a file or its bytes.
        strict: see `read_frames`.

    Raises:
        DecodeError: the source is missing, empty, damaged or holds no video.
    """
    with _reporting(source):
        timeline = _timeline(source, strict)
        with _opened(source, strict) as (container, stream):
            frames = container.decode(stream)
            first = next(frames, None)
            if first is None:
                raise DecodeError(f"{_name(source)}: no frame can be decoded")
            height, width = _rgb(first).shape[:2]
            count = len(timeline.pts) if timeline else 1 + sum(1 for _ in frames)
            return VideoInfo(count, height, width, float(_rate(source, stream)), _codec(stream))


def frame_rate(source: Source) -> Fraction:
    """Mean frames per second, from the file's header; raises `DecodeError` like `probe`."""
    with _reporting(source), _opened(source, strict=False) as (_, stream):
        return _rate(source, stream)


def read_frames(
    source: Source, indices: Sequence[int], *, strict: bool = True
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decode the frames numbered `indices`, in that order; repeats are allowed.

    Args:
        source: a file or its bytes.
        indices: frame numbers from 0; at least one.
        strict: stop at damaged data, as far as decoders notice it (FFmpeg's `err_detect=explode`).
            Otherwise they hide it and return grey or smeared frames without a word. Turn it off
            for a file that plays well but is refused.

    Returns:
        RGB in 0..255.

    Raises:
        ValueError: no index, or a negative one.
        DecodeError: the source cannot be read, or has fewer frames.
    """
    if len(indices) == 0 or min(indices) < 0:
        raise ValueError(
            f"{_name(source)}: frame numbers {list(indices)} must be 0 or more, at least one"
        )
    wanted = set(indices)
    first, last = min(wanted), max(wanted)
    found: dict[int, np.ndarray] = {}
    number = first - 1
    with _reporting(source), closing(_numbered(source, first, strict)) as frames:
        for number, frame in frames:
            if number in wanted:
                found[number] = _rgb(frame)
            if number == last:
                return np.stack([found[index] for index in indices])
        raise DecodeError(f"{_name(source)}: no frame {last}; it ends before frame {number + 1}")


def iterate_frames(
    source: Source, start: int = 0, end: int | None = None, *, strict: bool = True
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield frames `start`, `start + 1`, ..., holding one at a time.

    Stops before `end`, or where the video ends if that comes first. Other
    arguments and errors as in `read_frames`.
    """
    with _reporting(source), closing(_numbered(source, start, strict)) as frames:
        if end is not None and start >= end:
            return
        number = None
        for number, frame in frames:
            yield _rgb(frame)
            if number + 1 == end:
                return
        if number is None:
            raise DecodeError(f"{_name(source)}: no frame {start}; the video is shorter")


def _numbered(
    source: Source, first: int, strict: bool
) -> Generator[tuple[int, VideoFrame], None, None]:
    """Yield (number, frame) from `first` on: by pts after a seek, else counted from the start."""
    position = first
    timeline = _timeline(source, strict) if first else None
    if timeline and first < len(timeline.pts):
        with _opened(source, strict) as (container, stream):
            try:
                for frame in _from_keyframe(container, stream, timeline, first):
                    if frame.pts != timeline.pts[position]:
                        break
                    yield position, frame
                    position += 1
                    if position == len(timeline.pts):
                        return
            except av.FFmpegError:
                pass  # a damaged stream fails again, and is reported, when counted from the start
    with _opened(source, strict) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number >= position:
                yield number, frame


def _from_keyframe(
    container: InputContainer, stream: VideoStream, timeline: _Timeline, first: int
) -> Iterator[VideoFrame]:
    """Seek to the last keyframe not after frame `first`; yield the frames from that pts on."""
    target = timeline.pts[first]
    key = bisect_right(timeline.keys, target) - 1
    if key > 0:
        container.seek(timeline.keys[key], stream=stream, backward=True)
    for frame in container.decode(stream):
        if frame.pts is None or frame.pts >= target:
            yield frame


def _timeline(source: Source, strict: bool) -> _Timeline | None:
    """Read the packets' timestamps; None where they do not number the frames."""
    pts: list[int] = []
    keys: list[int] = []
    with _opened(source, strict) as (container, stream):
        formats = set(container.format.name.split(","))
        if formats & COUNTED_CONTAINERS or _codec(stream) in COUNTED_CODECS:
            return None
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                continue
            if packet.is_corrupt and strict:
                raise DecodeError(f"{_name(source)}: a packet is cut short; the file is truncated")
            if packet.pts is None:
                return None
            pts.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    if not pts or len(set(pts)) < len(pts):
        return None
    return _Timeline(sorted(pts), sorted(keys))


@contextmanager
def _opened(source: Source, strict: bool) -> Iterator[tuple[InputContainer, VideoStream]]:
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    with av.open(file, mode="r", metadata_errors="replace") as container:
        if not container.streams.video:
            raise DecodeError(f"{_name(source)}: no video stream ({container.format.long_name})")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # parallelism is over videos, in loader workers
        if strict:
            stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def _codec(stream: VideoStream) -> str:
    """The codec's name, whichever decoder reads it."""
    return stream.codec_context.codec.canonical_name


def _rate(source: Source, stream: VideoStream) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise DecodeError(f"{_name(source)}: the frame rate is unknown")
    return rate


def _rgb(frame: VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    image = frame.to_ndarray(format="rgb24", interpolation=EXACT, threads=1)
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


@contextmanager
def _reporting(source: Source) -> Iterator[None]:
    """Turn whatever FFmpeg or PyAV raises on a bad file into a `DecodeError`."""
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise DecodeError(f"{_name(source)}: {_cause(source, error)}") from error


def _cause(source: Source, error: Exception) -> str:
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            head = file.read(64)
    except OSError as reason:
        return reason.strerror or type(reason).__name__
    if not head:
        return "the file is empty"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, not a video; a download probably failed"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"cannot be decoded ({reason})"


def _name(source: Source) -> str:
    return f"video of {len(source)} bytes" if isinstance(source, bytes) else str(source)
