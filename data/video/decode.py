"""Exact frames out of video files: by packet timestamps where these can be trusted, else by count.

Seeking by time returns wrong frames on variable frame rates and on AVI with packed B-frames, and
gray ones where a container calls frames sync frames that are none. Here one pass over the packets
(nothing is decoded) gives the sorted presentation timestamps (pts), which number the frames.
Reading seeks to the sync frame at or before the first wanted frame, checks that the decoder found
an intact intra-coded key frame there, and takes frames whose pts equals the expected one. Where
timestamps are missing, repeated or known to be made up by the demuxer, or where a check fails,
frames are counted from the start of the file. Reading a file takes no longer than a limit.
"""

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from data.video.decode_errors import TIME_LIMIT, Clock, DecodeError, Source, name_of, reporting
from data.video.timeline import (
    Timeline,
    is_counted_container,
    no_frame,
    opened,
    packets_of,
    read_numbering,
    read_timeline,
)
from data.video.torchcodec_frames import Decoder, check_decoder, torchcodec_frames
from data.video.transforms import orientation, shown_aspect, to_rgb

__all__ = [
    "TIME_LIMIT",
    "DecodeError",
    "Decoder",
    "Source",
    "TimedFrame",
    "iterate_frames",
    "iterate_timed_frames",
    "read_frames",
]


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame."""

    image: UInt8[np.ndarray, "h w 3"]
    """RGB in 0..255, the right way up."""
    seconds: float | None
    """When it is shown, by the file's own clock; None where the file does not tell."""
    pixel_aspect: Fraction
    """Width of a pixel by its height."""


def read_frames(
    source: Source,
    indices: Sequence[int],
    *,
    strict: bool = True,
    time_limit: float = TIME_LIMIT,
    decoder: Decoder = "pyav",
    frames: int | None = None,
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decode the frames numbered `indices`, in that order; repeats are allowed.

    Args:
        source: a file or its bytes.
        indices: frame numbers from 0; at least one.
        strict: stop at damaged data, as far as decoders notice it (FFmpeg's `err_detect=explode`).
            Otherwise frames that cannot be decoded are left out, so that numbers count those that
            can, and decoders return gray or smeared frames without a word. Turn it off for a
            file that plays well but is refused.
        time_limit: seconds that reading may take; more is an error.
        decoder: `torchcodec` gives the same frames with less work, their colors converted more
            roughly; PyAV still reads the packets, and whatever torchcodec does not read rightly.
        frames: how many there are, by `probe`. Without `strict` it takes this to seek: only where
            every packet gives a frame do packets number the frames.

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
            timeline = read_numbering(source, strict, clock)
            if timeline is not None and frames not in (None, len(timeline.pts)):
                timeline = None  # without some frames, the packets do not number the others
            if timeline is not None and _can_seek(source, timeline, indices, clock):
                images = torchcodec_frames(source, indices, timeline)
                clock.check()
                if images is not None:
                    return images
    wanted = set(indices)
    first, last = min(wanted), max(wanted)
    found: dict[int, np.ndarray] = {}
    number = first - 1
    numbered = _numbered(source, first, strict, clock, [], frames)
    with reporting(source), closing(numbered) as decoded:
        for number, frame, _ in decoded:
            if number in wanted:
                found[number] = to_rgb(frame)
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
    timed = iterate_timed_frames(source, start, end, strict=strict, time_limit=time_limit)
    with closing(timed):
        for frame in timed:
            yield frame.image


def iterate_timed_frames(
    source: Source,
    start: int = 0,
    end: int | None = None,
    *,
    strict: bool = True,
    time_limit: float = TIME_LIMIT,
    gaps: list[int] | None = None,
) -> Generator[TimedFrame, None, None]:
    """Like `iterate_frames`, with each frame's time and the shape of its pixels.

    Args:
        gaps: gets, without `strict`, for each packet that gave no frame because it is damaged, the
            number of frames before it.
    """
    clock = Clock(source, time_limit)
    numbered = _numbered(source, start, strict, clock, [] if gaps is None else gaps)
    with reporting(source), closing(numbered) as frames:
        if end is not None and start >= end:
            return
        number = None
        for number, frame, aspect in frames:
            timed = TimedFrame(to_rgb(frame), frame.time, aspect)
            with clock.paused():
                yield timed
            if number + 1 == end:
                return
        if number is None:
            count = read_timeline(source, False, clock).packets
            what = f"no frame {start}; it has {count} packets" if start else no_frame(count)
            raise DecodeError(f"{name_of(source)}: {what}")


def _numbered(
    source: Source,
    first: int,
    strict: bool,
    clock: Clock,
    gaps: list[int],
    frames: int | None = None,
) -> Generator[tuple[int, VideoFrame, Fraction], None, None]:
    """Yield (number, frame, pixel aspect) from `first` on: by pts after a seek, else counted."""
    position = first
    timeline = read_numbering(source, strict, clock) if first and (strict or frames) else None
    if timeline and first < len(timeline.pts) and (strict or frames == len(timeline.pts)):
        with opened(source, strict) as (container, stream):
            try:
                for frame in _from_keyframe(source, container, stream, timeline, first, clock):
                    if frame.pts != timeline.pts[position]:
                        break
                    yield position, frame, shown_aspect(stream, frame)
                    position += 1
                    if position == len(timeline.pts):
                        return
            except (av.FFmpegError, DecodeError):
                pass  # a damaged stream fails again, and is reported, when counted from the start
    with opened(source, strict) as (container, stream):
        decoded = decoded_frames(source, container, stream, strict, clock, gaps)
        for number, frame in enumerate(decoded):
            if number >= position:
                yield number, frame, shown_aspect(stream, frame)


def _from_keyframe(
    source: Source,
    container: InputContainer,
    stream: VideoStream,
    timeline: Timeline,
    first: int,
    clock: Clock,
) -> Iterator[VideoFrame]:
    """Seek to the last sync frame not after frame `first`; yield the frames from that pts on.

    Yields nothing where the decoder finds no key frame there: then what follows it refers to frames
    that were not decoded.
    """
    target = timeline.pts[first]
    place = bisect_right(timeline.keys, target) - 1
    key = timeline.keys[place] if place > 0 else None
    if key is not None:
        container.seek(key, stream=stream, backward=True)
    for frame in decoded_frames(source, container, stream, True, clock, []):
        if frame.pts is not None and key is not None:
            if frame.pts < key:
                continue  # of an open group of pictures, shown before its key frame
            intra = frame.key_frame and frame.pict_type == PictureType.I
            if frame.pts != key or not intra:
                return
            key = None
        if frame.is_corrupt:
            return
        if frame.pts is None or frame.pts >= target:
            yield frame


def _can_seek(source: Source, timeline: Timeline, indices: Sequence[int], clock: Clock) -> bool:
    """Whether torchcodec can serve: the sync frames are true ones, and no picture is mirrored."""
    keys = [bisect_right(timeline.keys, timeline.pts[n]) for n in indices if n < len(timeline.pts)]
    for key in {max(0, key - 1) for key in keys}:
        first = timeline.pts.index(timeline.keys[key]) if timeline.keys else 0
        with opened(source, strict=False) as (container, stream):
            try:
                decoded = _from_keyframe(source, container, stream, timeline, first, clock)
                frame = next(decoded, None)
            except (av.FFmpegError, DecodeError):
                return False
            if frame is None or frame.pts != timeline.pts[first]:
                return False
            a, b, c, d = orientation(frame)
            if a * d - b * c < 0:
                return False
    return True


def decoded_frames(
    source: Source,
    container: InputContainer,
    stream: VideoStream,
    strict: bool,
    clock: Clock,
    gaps: list[int],
) -> Iterator[VideoFrame]:
    """Frames from where the container stands; the time is checked at every packet."""
    number = 0
    counted = is_counted_container(container)
    for packet in packets_of(container, stream, strict):
        clock.check()
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            if strict:
                raise
            gaps.append(number)
            continue
        for frame in frames:
            if strict and frame.is_corrupt and not counted:
                raise DecodeError(f"{name_of(source)}: frame {number} is damaged")
            yield frame
            number += 1
