"""What a video file is: its frames, size, rate, and what is unusual about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np

from data.video.container import (
    TIME_LIMIT,
    DecodeError,
    OpenVideo,
    Source,
    Timeline,
    is_variable,
    mean_rate,
    no_frame,
    opened,
    pixel_aspect,
    read_numbering,
    read_timeline,
    reading,
    video_streams,
)
from data.video.decode import decoded_frames, iterate_frames, read_frames
from data.video.transforms import to_rgb

COMPARED = 3
"""Frames of a video that are compared between seeking and decoding in sequence."""


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
    notes: tuple[str, ...] = ()
    """What is unusual, and how it is read."""


def probe(source: Source, *, strict: bool = True, time_limit: float = TIME_LIMIT) -> VideoInfo:
    """Count a video's frames and measure them.

    Decodes one frame; or all where packets mislead, or where damage is allowed and only decoding
    tells which frames there are.

    Args:
        source: a file or its bytes.
        strict, time_limit: see `read_frames`.

    Raises:
        DecodeError: the source is missing, empty, damaged or holds no video.
    """
    with reading(source, strict=strict, time_limit=time_limit) as file:
        timeline = read_timeline(file)
        with opened(file) as video:
            gaps: list[int] = []
            frames = decoded_frames(video, None if strict else gaps)
            first = next(frames, None)
            if first is None:
                raise DecodeError(f"{file.name}: {no_frame(timeline.packets)}")
            height, width = to_rgb(first).shape[:2]
            exact = strict and timeline.numbers_frames
            count = len(timeline.pts) if exact else 1 + sum(1 for _ in frames)
            rate = mean_rate(video, timeline)
            notes = (*stream_notes(video, rate, timeline), *gap_notes(gaps))
            return VideoInfo(count, height, width, float(rate), video.codec, notes)


def probe_header(source: Source) -> VideoInfo:
    """What a file's header says, without decoding: quick, but `frames` may be off by some.

    Where the header tells no length, or two frame rates, the packets are counted instead.

    Raises:
        DecodeError: the source cannot be opened, holds no video or tells no frame rate.
    """
    with reading(source, strict=False, time_limit=TIME_LIMIT) as file, opened(file) as video:
        timeline, stream, context = None, video.stream, video.stream.codec_context
        stated = {rate for rate in (stream.average_rate, stream.guessed_rate) if rate}
        if stream.duration and stream.time_base:
            seconds = stream.duration * stream.time_base
        else:
            seconds = Fraction(video.container.duration or 0, av.time_base)
        doubtful = len(stated) > 1 and max(stated) > 1.01 * min(stated)
        if not stream.frames and (doubtful or not seconds):
            timeline = read_timeline(file)
        rate = mean_rate(video, timeline)
        frames = timeline.packets if timeline else stream.frames or round(seconds * rate)
        notes = stream_notes(video, rate, timeline)
        return VideoInfo(frames, context.height, context.width, float(rate), video.codec, notes)


def read_timing(
    source: Source, *, strict: bool = True, time_limit: float = TIME_LIMIT
) -> tuple[Timeline, Fraction, tuple[str, ...]]:
    """When the frames of a video are shown, by its packets; errors as in `probe`.

    Returns:
        The time of every packet; the mean frame rate in Hz, by them and the header; and notes as
        in `VideoInfo`.
    """
    with reading(source, strict=strict, time_limit=time_limit) as file:
        timeline = read_timeline(file)
        with opened(file) as video:
            rate = mean_rate(video, timeline)
            return timeline, rate, stream_notes(video, rate, timeline)


def check_frames(
    source: Source, *, strict: bool = True, time_limit: float = TIME_LIMIT
) -> tuple[int, int, int]:
    """Decode every frame in sequence, and compare some with what seeking to them gives.

    Returns:
        Frames, height and width.

    Raises:
        DecodeError: as `read_frames`; or seeking gives other pixels, or frames differ in size.
    """
    with reading(source, strict=strict, time_limit=time_limit) as file:
        timeline, wanted = read_numbering(file), set()
        if timeline is not None and len(timeline.keys) > 1:
            keys = np.searchsorted(timeline.pts, timeline.keys)
            ends = [*(keys[2:] - 1).tolist(), len(timeline.pts) - 1]  # of each group but the first
            places = np.linspace(0, len(ends) - 1, COMPARED).round().astype(int)
            wanted = {ends[place] for place in places}
        count, size = 0, None
        compared: dict[int, np.ndarray] = {}
        frames = iterate_frames(source, strict=strict, time_limit=time_limit)
        for count, image in enumerate((frame.image for frame in frames), 1):
            size = size or image.shape[:2]
            if image.shape[:2] != size:
                raise DecodeError(f"{file.name}: frames of {size} and {image.shape[:2]}")
            if count - 1 in wanted:
                compared[count - 1] = image
        for number, image in compared.items():
            sought = read_frames(source, [number], strict=strict, frames=count)[0]
            if not np.array_equal(sought, image):
                raise DecodeError(
                    f"{file.name}: seeking to frame {number} gives other pixels than decoding in "
                    "sequence"
                )
        assert size is not None  # no frame is an error
        return count, *size


def stream_notes(video: OpenVideo, rate: Fraction, timeline: Timeline | None) -> tuple[str, ...]:
    """What is unusual about a file, and how it is read."""
    notes, stream = [], video.stream
    if (count := len(video_streams(video.container))) > 1:
        which = "the default one" if stream.disposition & 1 else "the first one"
        notes.append(f"{count} video streams; stream {stream.index} is read, {which}")
    stated = stream.average_rate
    if stated and abs(stated / rate - 1) > 0.01:
        notes.append(
            f"the header says {float(stated):g} frames per second, timestamps {float(rate):.4g}"
        )
    if timeline is not None and is_variable(times := timeline.seconds):
        steps = [after - before for before, after in pairwise(times)]
        notes.append(
            f"variable frame rate: frames last {min(steps):.3g} to {max(steps):.3g} s, "
            f"{float(rate):.4g} per second on average"
        )
    if (aspect := pixel_aspect(stream)) != 1:
        notes.append(f"pixels are {float(aspect):.4g} times as wide as high")
    return tuple(notes)


def gap_notes(gaps: Sequence[int]) -> tuple[str, ...]:
    """Says after which frames others are missing that cannot be decoded."""
    if not gaps:
        return ()
    places = ", ".join(str(gap) for gap in sorted(set(gaps))[:8])
    more = ", ..." if len(set(gaps)) > 8 else ""
    return (f"{len(gaps)} damaged packets give no frame: gaps before frame {places}{more}",)
