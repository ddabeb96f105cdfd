"""Exact frames out of video files: by packet timestamps where these can be trusted, else by count.

Seeking by time returns wrong frames on variable frame rates and on AVI with packed B-frames. Here
one pass over the packets (nothing is decoded) gives the sorted presentation timestamps (pts), which
number the frames. Reading seeks to the keyframe at or before the first wanted frame and takes
frames whose pts equals the expected one. Where timestamps are missing, repeated or known to be made
up by the demuxer, or where a seek lands wrongly, frames are counted from the start of the file.
Reading a file takes no longer than a limit.
"""

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from jaxtyping import UInt8

from data.video.decode_errors import TIME_LIMIT, Clock, DecodeError, Source, name_of, reporting
from data.video.timeline import Timeline, codec_name, opened, read_timeline
from data.video.torchcodec_frames import Decoder, check_decoder, torchcodec_frames

__all__ = [
    "TIME_LIMIT",
    "DecodeError",
    "Decoder",
    "Source",
    "VideoInfo",
    "frame_rate",
    "glance",
    "iterate_frames",
    "probe",
    "read_frames",
]

EXACT = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.BITEXACT
)
"""Colours by the formula, equal on every CPU; FFmpeg's default is faster, but a level darker."""


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


def probe(source: Source, *, strict: bool = True, time_limit: float = TIME_LIMIT) -> VideoInfo:
    """Count a video's frames and measure them; decodes one frame, or all where packets mislead.

    Args:
        source: a file or its bytes.
        strict, time_limit: see `read_frames`.

    Raises:
        DecodeError: the source is missing, empty, damaged or holds no video.
    """
    clock = Clock(source, time_limit)
    with reporting(source):
        timeline = read_timeline(source, strict, clock)
        with opened(source, strict) as (container, stream):
            frames = _decoded(container, stream, clock)
            first = next(frames, None)
            if first is None:
                raise DecodeError(f"{name_of(source)}: no frame can be decoded")
            height, width = _rgb(first).shape[:2]
            count = len(timeline.pts) if timeline else 1 + sum(1 for _ in frames)
            return VideoInfo(count, height, width, float(_rate(source, stream)), codec_name(stream))


def glance(source: Source) -> VideoInfo:
    """What a file's header says, without decoding: quick, but `frames` may be off by some.

    Raises:
        DecodeError: the source cannot be opened, holds no video or tells no frame rate.
    """
    with reporting(source), opened(source, strict=False) as (container, stream):
        rate, context = _rate(source, stream), stream.codec_context
        seconds = Fraction(container.duration or 0, av.time_base)
        if stream.duration and stream.time_base:
            seconds = stream.duration * stream.time_base
        frames = stream.frames or round(seconds * rate)
        return VideoInfo(frames, context.height, context.width, float(rate), codec_name(stream))


def frame_rate(source: Source) -> Fraction:
    """Mean frames per second, from the file's header; raises `DecodeError` like `probe`."""
    with reporting(source), opened(source, strict=False) as (_, stream):
        return _rate(source, stream)


def read_frames(
    source: Source,
    indices: Sequence[int],
    *,
    strict: bool = True,
    time_limit: float = TIME_LIMIT,
    decoder: Decoder = "pyav",
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decode the frames numbered `indices`, in that order; repeats are allowed.

    Args:
        source: a file or its bytes.
        indices: frame numbers from 0; at least one.
        strict: stop at damaged data, as far as decoders notice it (FFmpeg's `err_detect=explode`).
            Otherwise they hide it and return grey or smeared frames without a word. Turn it off
            for a file that plays well but is refused.
        time_limit: seconds that reading may take; more is an error.
        decoder: `torchcodec` gives the same frames with less work, their colours converted more
            roughly; PyAV still reads the packets, and whatever torchcodec does not read rightly.

    Returns:
        RGB in 0..255.

    Raises:
        ValueError: no index, or a negative one; torchcodec is missing, or asked to be strict.
        DecodeError: the source cannot be read, has fewer frames, or takes too long.
    """
    if len(indices) == 0 or min(indices) < 0:
        raise ValueError(
            f"{name_of(source)}: frame numbers {list(indices)} must be 0 or more, at least one"
        )
    clock = Clock(source, time_limit)
    check_decoder(decoder, strict)
    if decoder == "torchcodec":
        with reporting(source):
            timeline = read_timeline(source, strict, clock)
            frames = torchcodec_frames(source, indices, timeline) if timeline else None
            clock.check()
        if frames is not None:
            return frames
    wanted = set(indices)
    first, last = min(wanted), max(wanted)
    found: dict[int, np.ndarray] = {}
    number = first - 1
    numbered = _numbered(source, first, strict, clock)
    with reporting(source), closing(numbered) as frames:
        for number, frame in frames:
            if number in wanted:
                found[number] = _rgb(frame)
            if number == last:
                return np.stack([found[index] for index in indices])
        raise DecodeError(f"{name_of(source)}: no frame {last}; it ends before frame {number + 1}")


def iterate_frames(
    source: Source,
    start: int = 0,
    end: int | None = None,
    *,
    strict: bool = True,
    time_limit: float = TIME_LIMIT,
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield frames `start`, `start + 1`, ..., holding one at a time.

    Stops before `end`, or where the video ends if that comes first. Other
    arguments and errors as in `read_frames`; what the caller does with a frame does not count as
    reading.
    """
    clock = Clock(source, time_limit)
    numbered = _numbered(source, start, strict, clock)
    with reporting(source), closing(numbered) as frames:
        if end is not None and start >= end:
            return
        number = None
        for number, frame in frames:
            image = _rgb(frame)
            with clock.paused():
                yield image
            if number + 1 == end:
                return
        if number is None:
            raise DecodeError(f"{name_of(source)}: no frame {start}; the video is shorter")


def _numbered(
    source: Source, first: int, strict: bool, clock: Clock
) -> Generator[tuple[int, VideoFrame], None, None]:
    """Yield (number, frame) from `first` on: by pts after a seek, else counted from the start."""
    position = first
    timeline = read_timeline(source, strict, clock) if first else None
    if timeline and first < len(timeline.pts):
        with opened(source, strict) as (container, stream):
            try:
                for frame in _from_keyframe(container, stream, timeline, first, clock):
                    if frame.pts != timeline.pts[position]:
                        break
                    yield position, frame
                    position += 1
                    if position == len(timeline.pts):
                        return
            except av.FFmpegError:
                pass  # a damaged stream fails again, and is reported, when counted from the start
    with opened(source, strict) as (container, stream):
        for number, frame in enumerate(_decoded(container, stream, clock)):
            if number >= position:
                yield number, frame


def _from_keyframe(
    container: InputContainer,
    stream: VideoStream,
    timeline: Timeline,
    first: int,
    clock: Clock,
) -> Iterator[VideoFrame]:
    """Seek to the last keyframe not after frame `first`; yield the frames from that pts on."""
    target = timeline.pts[first]
    key = bisect_right(timeline.keys, target) - 1
    if key > 0:
        container.seek(timeline.keys[key], stream=stream, backward=True)
    for frame in _decoded(container, stream, clock):
        if frame.pts is None or frame.pts >= target:
            yield frame


def _decoded(container: InputContainer, stream: VideoStream, clock: Clock) -> Iterator[VideoFrame]:
    """Frames from where the container stands; the time is checked at every packet."""
    for packet in container.demux(stream):
        clock.check()
        yield from packet.decode()


def _rate(source: Source, stream: VideoStream) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise DecodeError(f"{name_of(source)}: the frame rate is unknown")
    return rate


def _rgb(frame: VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    image = frame.to_ndarray(format="rgb24", interpolation=EXACT, threads=1)
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
