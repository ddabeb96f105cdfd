"""A video file open for reading: its packets, the times of its frames, and what can go wrong."""

import io
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from common.files import printable

Source = Path | str | bytes
"""A file, or the bytes of one."""

TIME_LIMIT = 600.0
"""Seconds that reading one file may take, unless the caller says otherwise."""
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


class DecodeError(ValueError):
    """A video that cannot be read; the message names the file and the cause."""


class TimeLimitError(DecodeError):
    """A video that takes longer to read than the caller allows."""


class VideoFile:
    """One file being read; its clock stands still while the caller works on a frame."""

    def __init__(self, source: Source, strict: bool, time_limit: float) -> None:
        self.source = source
        self.strict = strict
        self.name = name_of(source)
        self._limit = time_limit
        self._spent = 0.0
        self._since = time.monotonic()

    def check_time(self) -> None:
        """Raise `TimeLimitError` if the time is up."""
        if self._spent + time.monotonic() - self._since > self._limit:
            raise TimeLimitError(
                f"{self.name}: reading takes longer than the limit of {self._limit:g} s"
            )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no time pass while the caller is at work."""
        self._spent += time.monotonic() - self._since
        try:
            yield
        finally:
            self._since = time.monotonic()


@contextmanager
def reading(source: Source, *, strict: bool, time_limit: float) -> Iterator[VideoFile]:
    """Read a file; whatever FFmpeg or PyAV raises on a bad one becomes a `DecodeError`.

    Arguments as of `data.video.decode.read_frames`.
    """
    try:
        yield VideoFile(source, strict, time_limit)
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise DecodeError(f"{name_of(source)}: {_cause(source, error)}") from error


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
    if isinstance(error, EOFError):
        return "ends before its first frame"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"cannot be decoded ({reason})"


def name_of(source: Source) -> str:
    """The source, for messages."""
    return f"video of {len(source)} bytes" if isinstance(source, bytes) else printable(source)


@dataclass(frozen=True)
class OpenVideo:
    """A file with its video stream, at some place between its packets."""

    file: VideoFile
    container: InputContainer
    stream: VideoStream

    @property
    def codec(self) -> str:
        """The codec's name, whichever decoder reads it."""
        return self.stream.codec_context.codec.canonical_name

    @property
    def has_counted_container(self) -> bool:
        """Whether the container's timestamps do not number the frames, and may tell no rate."""
        return bool(COUNTED_CONTAINERS & set(self.container.format.name.split(",")))

    @property
    def is_counted(self) -> bool:
        """Whether frames must be counted by decoding, because packets do not number them."""
        return self.has_counted_container or self.codec in COUNTED_CODECS

    def packets(self, *, strict: bool) -> Iterator[Packet | None]:
        """Packets, at the end one without data or None, which makes decoders give what they hold.

        Where the container is damaged, the packets end there, unless `strict`. The time is checked
        at each.
        """
        try:
            for packet in self.container.demux(self.stream):
                self.file.check_time()
                yield packet
        except av.FFmpegError:
            if strict:
                raise
            yield None


@contextmanager
def opened(file: VideoFile) -> Iterator[OpenVideo]:
    """Open a file and its video stream: the default one, where there are several.

    Cover pictures are no video.
    """
    source = io.BytesIO(file.source) if isinstance(file.source, bytes) else str(file.source)
    if isinstance(source, str) and not stat.S_ISREG(mode := os.stat(source).st_mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise DecodeError(f"{file.name}: {kind}, not a file")
    with av.open(source, mode="r", metadata_errors="replace") as container:
        streams = video_streams(container)
        if not streams:
            raise DecodeError(f"{file.name}: no video stream ({container.format.long_name})")
        stream = streams[0]
        if stream.codec_context is None:
            codec = _codec_id(file.source)
            raise DecodeError(f"{file.name}: no decoder for its codec, {codec}")
        stream.thread_type = "NONE"  # parallelism is over videos, in loader workers
        if file.strict:
            stream.codec_context.options = {"err_detect": "explode"}
        yield OpenVideo(file, container, stream)


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The moving pictures of a file: what can be decoded first, the default ones before others."""
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return sorted(
        moving, key=lambda s: (s.codec_context is None, not s.disposition & Disposition.default)
    )


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


@dataclass(frozen=True, kw_only=True)
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


def read_timeline(file: VideoFile) -> Timeline:
    """Read all packets of a file; where damage is allowed, up to where the container is damaged.

    Raises:
        DecodeError: the file is cut short, or holds no video.
    """
    pts: list[int | None] = []
    keys: list[int] = []
    with opened(file) as video:
        codec, counted = video.codec, video.is_counted
        for packet in video.packets(strict=file.strict):
            if packet is None or not packet.size or packet.is_discard:
                continue
            if packet.is_corrupt and file.strict and not counted:
                raise DecodeError(f"{file.name}: a packet is cut short; the file is truncated")
            if codec == "vp8" and not memoryview(packet)[0] & 0x10:
                continue  # RFC 6386, 9.1: show_frame
            pts.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
        made_up = video.has_counted_container or video.stream.time_base is None
        known = [p for p in pts if p is not None]
        if made_up or len(set(known)) < len(pts):
            known = []
        return Timeline(
            pts=sorted(known),
            keys=sorted(keys),
            time_base=video.stream.time_base or Fraction(1),
            stream=video.stream.index,
            packets=len(pts),
            numbers_frames=bool(known) and not counted,
        )


def read_numbering(file: VideoFile) -> Timeline | None:
    """The timeline where it numbers the frames, else None; errors as in `read_timeline`."""
    with opened(file) as video:
        if video.is_counted:
            return None
    timeline = read_timeline(file)
    return timeline if timeline.numbers_frames else None


def mean_rate(video: OpenVideo, timeline: Timeline | None) -> Fraction:
    """Frames per second, Hz: the header's where it agrees with the timestamps, else theirs.

    Containers that count in milliseconds often give a rate of 1000 in their header.

    Raises:
        DecodeError: neither tells.
    """
    stated = [rate for rate in (video.stream.average_rate, video.stream.guessed_rate) if rate]
    if timeline is not None and len(timeline.pts) > 1:
        span = (timeline.pts[-1] - timeline.pts[0]) * timeline.time_base
        rate = (len(timeline.pts) - 1) / span
        tolerance = max(RATE_TOLERANCE, float(2 * timeline.time_base / span))
        near = (each for each in stated if abs(each / rate - 1) <= tolerance)
        return next(near, None) or round_rate(rate)
    if not stated:
        raise DecodeError(f"{video.file.name}: the frame rate is unknown")
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


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a pixel by its height, as stored; 1 where the file says nothing or nonsense."""
    aspect = stream.sample_aspect_ratio
    if not aspect or not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
        return Fraction(1)
    return aspect


def no_frame(packets: int) -> str:
    """Message for a file of `packets` packets from which no frame can be decoded."""
    if not packets:
        return "no frame can be decoded: the video stream is empty"
    return f"no frame can be decoded from its {packets} packets"
