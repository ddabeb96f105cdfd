"""Exact frames out of video files: by packet timestamps where these can be trusted, else by count.

Seeking by time returns wrong frames on variable frame rates and on AVI with packed B-frames, and
gray ones where a container calls frames sync frames that are none. Here one pass over the packets
(nothing is decoded) gives the sorted presentation timestamps (pts), which number the frames.
Reading seeks to the sync frame at or before the first wanted frame, checks that the decoder found
an intact sync frame there, and takes frames whose pts equals the expected one. Where
timestamps are missing, repeated or known to be made up by the demuxer, or where a check fails,
frames are counted from the start of the file. Reading a file takes no longer than a limit.

torchcodec, an optional package, is faster. It takes the place of frames from our own index of the
packets, so it scans nothing and guesses nothing, and what it returns must have the expected
timestamps. Where it does not, or where packets do not number the frames (AVI, MPEG), PyAV reads.
"""

import importlib
import json
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Literal

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from jaxtyping import UInt8

from data.video.container import (
    TIME_LIMIT,
    DecodeError,
    OpenVideo,
    Source,
    Timeline,
    VideoFile,
    name_of,
    no_frame,
    opened,
    read_numbering,
    read_timeline,
    reading,
)
from data.video.transforms import orientation, shown_aspect, to_rgb

Decoder = Literal["pyav", "torchcodec"]


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame."""

    image: UInt8[np.ndarray, "h w 3"]
    """RGB in 0..255, the right way up."""
    seconds: float | None = None
    """When it is shown, by the file's own clock; None where the file does not tell."""
    pixel_aspect: Fraction = Fraction(1)
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
    check_decoder(decoder, strict)
    with reading(source, strict=strict, time_limit=time_limit) as file:
        if decoder == "torchcodec":
            timeline = read_numbering(file)
            if timeline is not None and frames not in (None, len(timeline.pts)):
                timeline = None  # without some frames, the packets do not number the others
            if timeline is not None and _can_seek(file, timeline, indices):
                images = torchcodec_frames(source, indices, timeline)
                file.check_time()
                if images is not None:
                    return images
        wanted = set(indices)
        first, last = min(wanted), max(wanted)
        found: dict[int, np.ndarray] = {}
        number = first - 1
        with closing(_numbered(file, first, [], frames)) as decoded:
            for number, frame, _ in decoded:
                if number in wanted:
                    found[number] = to_rgb(frame)
                if number == last:
                    return np.stack([found[index] for index in indices])
        raise DecodeError(f"{file.name}: no frame {last}; it ends before frame {number + 1}")


def iterate_frames(
    source: Source,
    start: int = 0,
    end: int | None = None,
    *,
    strict: bool = True,
    time_limit: float = TIME_LIMIT,
    gaps: list[int] | None = None,
) -> Generator[TimedFrame, None, None]:
    """Yield frames `start`, `start + 1`, ..., holding one at a time.

    Stops before `end`, or where the video ends if that comes first. What the caller does with a
    frame does not count as reading.

    Args:
        gaps: gets, without `strict`, for each packet that gave no frame because it is damaged, the
            number of frames before it.

    Other arguments and errors as in `read_frames`.
    """
    with reading(source, strict=strict, time_limit=time_limit) as file:
        if end is not None and start >= end:
            return
        number = None
        with closing(_numbered(file, start, [] if gaps is None else gaps)) as frames:
            for number, frame, aspect in frames:
                timed = TimedFrame(to_rgb(frame), frame.time, aspect)
                with file.paused():
                    yield timed
                if number + 1 == end:
                    return
        if number is None:
            count = read_timeline(file).packets
            what = f"no frame {start}; it has {count} packets" if start else no_frame(count)
            raise DecodeError(f"{file.name}: {what}")


def _numbered(
    file: VideoFile, first: int, gaps: list[int], frames: int | None = None
) -> Generator[tuple[int, VideoFrame, Fraction], None, None]:
    """Yield (number, frame, pixel aspect) from `first` on: by pts after a seek, else counted."""
    position = first
    timeline = read_numbering(file) if first and (file.strict or frames) else None
    if timeline and first < len(timeline.pts) and (file.strict or frames == len(timeline.pts)):
        with opened(file) as video:
            try:
                for frame in _from_sync_frame(video, timeline, first):
                    if frame.pts != timeline.pts[position]:
                        break
                    yield position, frame, shown_aspect(video.stream, frame)
                    position += 1
                    if position == len(timeline.pts):
                        return
            except (av.FFmpegError, DecodeError):
                pass  # a damaged stream fails again, and is reported, when counted from the start
    with opened(file) as video:
        for number, frame in enumerate(decoded_frames(video, None if file.strict else gaps)):
            if number >= position:
                yield number, frame, shown_aspect(video.stream, frame)


def _from_sync_frame(video: OpenVideo, timeline: Timeline, first: int) -> Iterator[VideoFrame]:
    """Seek to the last sync frame not after frame `first`; yield the frames from that pts on.

    Yields nothing where the decoder finds no sync frame: then what follows it refers to frames
    that were not decoded.
    """
    target = timeline.pts[first]
    place = bisect_right(timeline.keys, target) - 1
    key = timeline.keys[place] if place > 0 else None
    if key is not None:
        video.container.seek(key, stream=video.stream, backward=True)
    for frame in decoded_frames(video, None):
        if frame.pts is not None and key is not None:
            if frame.pts < key:
                continue  # of an open group of pictures, shown before its sync frame
            intra = frame.key_frame and frame.pict_type == PictureType.I
            if frame.pts != key or not intra:
                return
            key = None
        if frame.is_corrupt:
            return
        if frame.pts is None or frame.pts >= target:
            yield frame


def decoded_frames(video: OpenVideo, gaps: list[int] | None) -> Iterator[VideoFrame]:
    """Frames from where the container stands; `gaps` as in `iterate_frames`, None for `strict`."""
    number = 0
    counted = video.has_counted_container
    for packet in video.packets(strict=gaps is None):
        try:
            frames = video.stream.decode(packet)
        except av.FFmpegError:
            if gaps is None:
                raise
            gaps.append(number)
            continue
        for frame in frames:
            if gaps is None and frame.is_corrupt and not counted:
                raise DecodeError(f"{video.file.name}: frame {number} is damaged")
            yield frame
            number += 1


def check_decoder(decoder: Decoder, strict: bool) -> None:
    """Refuse (`ValueError`) torchcodec where it is not installed, or asked to be `strict`."""
    if decoder == "pyav":
        return
    if strict:
        raise ValueError(
            "decoder=torchcodec does not notice damaged data: use it with strict_decoding=false, "
            "on files that were packed or verified, or use decoder=pyav"
        )
    _torchcodec_decoders()


@cache
def _torchcodec_decoders() -> Any:
    """The module torchcodec.decoders."""
    try:
        return importlib.import_module("torchcodec.decoders")
    except ImportError:
        raise ValueError(
            "decoder=torchcodec, but the package is not installed: pip install 'ivvae[torchcodec]'"
            ", or use decoder=pyav"
        ) from None
    except (RuntimeError, OSError) as error:
        raise ValueError(
            "decoder=torchcodec, but its libraries cannot be loaded: install FFmpeg with shared "
            f"libraries, or use decoder=pyav ({str(error).strip().partition(chr(10))[0]})"
        ) from None


def _can_seek(file: VideoFile, timeline: Timeline, indices: Sequence[int]) -> bool:
    """Whether torchcodec can serve: the sync frames are true ones, and no picture is mirrored."""
    keys = [bisect_right(timeline.keys, timeline.pts[n]) for n in indices if n < len(timeline.pts)]
    for key in {max(0, key - 1) for key in keys}:
        first = timeline.pts.index(timeline.keys[key]) if timeline.keys else 0
        with opened(file) as video:
            try:
                frame = next(_from_sync_frame(video, timeline, first), None)
            except (av.FFmpegError, DecodeError):
                return False
            if frame is None or frame.pts != timeline.pts[first]:
                return False
            a, b, c, d = orientation(frame)
            if a * d - b * c < 0:
                return False
    return True


def torchcodec_frames(
    source: Source, indices: Sequence[int], timeline: Timeline
) -> UInt8[np.ndarray, "t h w 3"] | None:
    """The frames numbered `indices`, RGB in 0..255; None where torchcodec gives no or other frames.

    Args:
        source: a file or its bytes.
        timeline: of the same source.
    """
    pts, keys = timeline.pts, set(timeline.keys)
    if max(indices) >= len(pts):
        return None
    places = [{"pts": time, "duration": 1, "key_frame": int(time in keys)} for time in pts]
    try:
        video = _torchcodec_decoders().VideoDecoder(
            source,
            stream_index=timeline.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,  # parallelism is over videos, in loader workers
            device="cpu",
            custom_frame_mappings=json.dumps({"frames": places}),
        )
        frames = video.get_frames_at(list(indices))
    except (RuntimeError, ValueError, IndexError):  # PyAV reads the file, or says what is wrong
        return None
    times = np.array([pts[index] for index in indices]) * float(timeline.time_base)
    if np.abs(frames.pts_seconds.numpy() - times).max() >= timeline.time_base / 2:
        return None
    return frames.data.numpy()
