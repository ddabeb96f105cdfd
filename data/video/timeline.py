"""What the packets of a video file tell without decoding: the time of every frame, in order."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from data.video.decode_errors import Clock, DecodeError, Source, name_of

COUNTED_CONTAINERS = {"avi", "mpeg", "mpegts"}
"""Their timestamps are made up, wrap, or count packets that hold no frame."""
COUNTED_CODECS = {"vp8"}
"""Its invisible frames have packets and timestamps of their own."""


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown."""

    pts: list[int]
    """Of every frame in display order, in units of `time_base`."""
    keys: list[int]
    """Those of the keyframes."""
    time_base: Fraction
    """Seconds."""
    stream: int
    """Number of the video's stream in the file."""


def read_timeline(source: Source, strict: bool, clock: Clock) -> Timeline | None:
    """Read the packets' timestamps; None where they do not number the frames.

    Raises:
        DecodeError: the file is cut short, under `strict`, or holds no video.
    """
    pts: list[int] = []
    keys: list[int] = []
    with opened(source, strict) as (container, stream):
        formats = set(container.format.name.split(","))
        if formats & COUNTED_CONTAINERS or codec_name(stream) in COUNTED_CODECS:
            return None
        for packet in container.demux(stream):
            clock.check()
            if not packet.size or packet.is_discard:
                continue
            if packet.is_corrupt and strict:
                raise DecodeError(
                    f"{name_of(source)}: a packet is cut short; the file is truncated"
                )
            if packet.pts is None:
                return None
            pts.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
        time_base, number = stream.time_base, stream.index
    if not pts or len(set(pts)) < len(pts) or time_base is None:
        return None
    return Timeline(sorted(pts), sorted(keys), time_base, number)


@contextmanager
def opened(source: Source, strict: bool) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first moving picture; `strict` as in `data.video.decode.read_frames`."""
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    if isinstance(file, str) and not stat.S_ISREG(mode := os.stat(file).st_mode):
        raise DecodeError(f"{file}: {_kind(mode)}, not a file")
    with av.open(file, mode="r", metadata_errors="replace") as container:
        stream = next(filter(_moves, container.streams.video), None)
        if stream is None:
            raise DecodeError(f"{name_of(source)}: no video stream ({container.format.long_name})")
        stream.thread_type = "NONE"  # parallelism is over videos, in loader workers
        if strict:
            stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def codec_name(stream: VideoStream) -> str:
    """The codec's name, whichever decoder reads it."""
    return stream.codec_context.codec.canonical_name


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a pipe or device"


def _moves(stream: VideoStream) -> bool:
    """Whether a stream is a video, and not the cover picture of a piece of music or a film."""
    return not stream.disposition & Disposition.attached_pic
