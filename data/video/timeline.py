"""What the packets of a video file tell without decoding: the time of every frame, in order."""

import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from data.video.decode_errors import Clock, DecodeError, Source, name_of

COUNTED_CONTAINERS = {"avi", "mpeg", "mpegts"}
"""Their timestamps are made up, wrap, or count packets that hold no frame."""
COUNTED_CODECS = {"vp8"}
"""Its invisible frames have packets and timestamps of their own."""
RATE_TOLERANCE = 0.01
"""A rate in a header counts where the timestamps' mean rate differs by no larger part."""
ROUNDING = 0.0015
"""Seconds by which the time between two frames may be off where a container counts in ms."""

MAX_PIXEL_ASPECT = 4
"""Largest plausible ratio of a pixel's sides; a larger one is an error in the file."""


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown."""

    pts: list[int]
    """Of every frame in display order, in units of `time_base`; empty where they are unknown."""
    keys: list[int]
    """Those of the frames that the container calls sync frames."""
    time_base: Fraction
    """Seconds."""
    stream: int
    """Number of the video's stream in the file."""
    packets: int
    """Packets that hold a frame to be shown."""
    numbers_frames: bool
    """Whether `pts` numbers the frames that decoding gives."""

    @property
    def seconds(self) -> list[float]:
        """Times of the frames, the first at 0."""
        return [float((pts - self.pts[0]) * self.time_base) for pts in self.pts]


def read_timeline(source: Source, strict: bool, clock: Clock) -> Timeline:
    """Read all packets of a file; without `strict`, up to where the container is damaged.

    Raises:
        DecodeError: the file is cut short, under `strict`, or holds no video.
    """
    pts: list[int | None] = []
    keys: list[int] = []
    with opened(source, strict) as (container, stream):
        codec, counted = codec_name(stream), is_counted(container, stream)
        for packet in packets_of(container, stream, strict):
            clock.check()
            if packet is None or not packet.size or packet.is_discard:
                continue
            if packet.is_corrupt and strict and not counted:
                raise DecodeError(
                    f"{name_of(source)}: a packet is cut short; the file is truncated"
                )
            if codec == "vp8" and not memoryview(packet)[0] & 0x10:
                continue  # RFC 6386, 9.1: show_frame
            pts.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
        made_up = is_counted_container(container) or stream.time_base is None
        known = [] if made_up or len(set(pts)) < len(pts) else [p for p in pts if p is not None]
        known = sorted(known) if len(known) == len(pts) else []
        return Timeline(
            known,
            sorted(keys),
            stream.time_base or Fraction(1),
            stream.index,
            len(pts),
            bool(known) and not counted,
        )


def read_numbering(source: Source, strict: bool, clock: Clock) -> Timeline | None:
    """The timeline where it numbers the frames, else None; errors as in `read_timeline`."""
    with opened(source, strict) as (container, stream):
        if is_counted(container, stream):
            return None
    timeline = read_timeline(source, strict, clock)
    return timeline if timeline.numbers_frames else None


def mean_rate(source: Source, stream: VideoStream, timeline: Timeline | None) -> Fraction:
    """Frames per second, Hz: the header's where it agrees with the timestamps, else theirs.

    Containers that count in milliseconds often give a rate of 1000 in their header.

    Raises:
        DecodeError: neither tells.
    """
    stated = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
    if timeline is not None and len(timeline.pts) > 1:
        span = (timeline.pts[-1] - timeline.pts[0]) * timeline.time_base
        rate = (len(timeline.pts) - 1) / span
        tolerance = max(RATE_TOLERANCE, float(2 * timeline.time_base / span))
        near = (each for each in stated if abs(each / rate - 1) <= tolerance)
        return next(near, None) or round_rate(rate)
    if not stated:
        raise DecodeError(f"{name_of(source)}: the frame rate is unknown")
    return stated[0]


def round_rate(rate: float | Fraction) -> Fraction:
    """A frame rate above 0 as a fraction that containers can store; never 0."""
    rate = Fraction(rate)
    if rate < 1:
        return 1 / (1 / rate).limit_denominator(1001)
    return rate.limit_denominator(1001)


def is_variable(seconds: Sequence[float]) -> bool:
    """Whether frames at these times are not evenly spaced, by more than a quarter of a step."""
    steps = [after - before for before, after in pairwise(seconds)]
    usual = median(steps) if steps else 0.0
    return any(abs(step - usual) > usual / 4 + ROUNDING for step in steps)


@contextmanager
def opened(source: Source, strict: bool) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its video stream: the default one, where there are several.

    Cover pictures are no video. `strict` as in `data.video.decode.read_frames`.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    if isinstance(file, str) and not stat.S_ISREG(mode := os.stat(file).st_mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise DecodeError(f"{name_of(source)}: {kind}, not a file")
    with av.open(file, mode="r", metadata_errors="replace") as container:
        streams = video_streams(container)
        if not streams:
            raise DecodeError(f"{name_of(source)}: no video stream ({container.format.long_name})")
        stream = streams[0]
        if stream.codec_context is None:
            raise DecodeError(f"{name_of(source)}: no decoder for its codec, {_codec_id(source)}")
        stream.thread_type = "NONE"  # parallelism is over videos, in loader workers
        if strict:
            stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The moving pictures of a file: what can be decoded first, the default ones before others."""
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return sorted(
        moving,
        key=lambda s: (s.codec_context is None, not s.disposition & Disposition.default),
    )


def packets_of(
    container: InputContainer, stream: VideoStream, strict: bool
) -> Iterator[Packet | None]:
    """Packets, and at the end one without data or None, which makes decoders give what they hold.

    Where the container is damaged, the packets end there, unless `strict`.
    """
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        if strict:
            raise
        yield None


def codec_name(stream: VideoStream) -> str:
    """The codec's name, whichever decoder reads it."""
    return stream.codec_context.codec.canonical_name


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a pixel by its height, as stored; 1 where the file says nothing or nonsense."""
    aspect = stream.sample_aspect_ratio
    if not aspect or not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
        return Fraction(1)
    return aspect


def is_counted(container: InputContainer, stream: VideoStream) -> bool:
    """Whether frames must be counted by decoding, because packets do not number them."""
    return is_counted_container(container) or codec_name(stream) in COUNTED_CODECS


def is_counted_container(container: InputContainer) -> bool:
    """Whether a container's timestamps do not number the frames, and may tell no rate."""
    return bool(COUNTED_CONTAINERS & set(container.format.name.split(",")))


def _codec_id(source: Source) -> str:
    """What the container calls a codec that FFmpeg does not know; only FFmpeg's log tells."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        with av.logging.Capture() as logs, av.open(file, metadata_errors="replace"):
            text = "\n".join(message for *_, message in logs)
    finally:
        av.logging.set_level(level)
    for pattern in (r"AVCodecID (\S+?)\.?\s", r"Video: none \((\S+)", r"Video: (?!none)(\w+)"):
        if found := re.search(pattern, text):
            return found.group(1)
    return "which the file does not name"


def no_frame(packets: int) -> str:
    """Message for a file of `packets` packets from which no frame can be decoded."""
    if not packets:
        return "no frame can be decoded: the video stream is empty"
    return f"no frame can be decoded from its {packets} packets"
