"""What an importer hands on: one video, or one stretch of one, with its label; and its frames.

The frames of a record lie in a video file, in a folder of images or in a zip of them, or are
computed.
"""

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from common.files import printable
from data.video.container import TIME_LIMIT, DecodeError, Timeline, is_variable
from data.video.decode import TimedFrame, iterate_frames
from data.video.probe import gap_notes, probe_header, read_timing

VIDEO_EXTENSIONS = (
    *("mp4", "mkv", "avi", "mov", "webm", "mpg", "mpeg", "m4v", "wmv", "flv", "ts", "3gp", "3g2"),
    *("asf", "ps", "ogv", "ogm", "mts", "m2ts", "m2t", "vob", "mjpeg", "mjpg", "m1v", "m2v", "mpe"),
    *("mpv", "f4v", "divx", "rm", "rmvb", "qt", "dv", "mxf", "y4m", "ivf", "nut", "amv"),
    *("h263", "h264", "264", "h265", "265", "hevc"),
)
"""File name extensions taken for videos, in lower case and without the dot."""
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp")
"""File name extensions taken for frames stored as images, likewise."""
CLIP_EXTENSIONS = (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS)
"""Members of shards that clips are cut from, a video before an image, which is one frame."""
DEEP_MODES = ("I", "F")
"""Pillow's modes of more than 8 bits per channel begin so; converting them clips their values."""
MAX_GAP = 3600.0
"""Seconds without a frame beyond which timestamps are taken for damaged."""


@dataclass(frozen=True, kw_only=True)
class SyntheticVideo(ABC):
    """A video that is computed; its fields decide every pixel."""

    num_frames: int
    fps: float
    """Frames per second, Hz."""

    @abstractmethod
    def frames(self, path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The RGB frames in 0..255, made with what the file at `path` holds."""


@dataclass(frozen=True)
class VideoRecord:
    """Frames `[start, end)` of the video at `path`; `end=None` means up to the last frame."""

    id: str
    """Unique in its set and the same in every run; no dots or slashes, which webdataset cuts at."""
    path: Path
    """The video file; or the folder or the zip of its frames."""
    label: int | None
    """Index into the set's class names; None without a class."""
    start: int = 0
    """First frame."""
    end: int | None = None
    """One past the last frame."""
    seconds: tuple[float, float] | None = None
    """Instead of frames: the stretch from one time to another."""
    box: tuple[int, int, int, int] | None = None
    """The part of each frame that is read, source pixels: left, top, right, bottom, the last two
    one past the end. None: all of it."""
    images: tuple[str, ...] = ()
    """Where the frames are images: their names in `path`, in order."""
    fps: float | None = None
    """Where the frames are images: frames per second, Hz."""
    synthetic: SyntheticVideo | None = None
    """Where the frames are computed: what computes them, from the file at `path`."""

    def __post_init__(self) -> None:
        if not self.id or set(self.id) & set("./\\"):
            raise ValueError(
                f"{printable(self.path)}: id {self.id!r} must be non-empty, without dots or slashes"
            )
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise ValueError(
                f"{printable(self.path)}: frames [{self.start}, {self.end}) are empty or negative; "
                "start must be >= 0 and end past it"
            )
        if self.seconds is not None and not 0 <= self.seconds[0] < self.seconds[1]:
            raise ValueError(
                f"{printable(self.path)}: seconds {self.seconds} must not be negative, "
                "the end past the start"
            )
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (0 <= left < right and 0 <= top < bottom):
                raise ValueError(
                    f"{printable(self.path)}: box {self.box} must be left, top, right, bottom with "
                    "0 <= left < right and 0 <= top < bottom"
                )
        if self.images and not (self.fps is not None and self.fps > 0):
            raise ValueError(f"{printable(self.path)}: images need fps, frames per second above 0")

    @property
    def is_whole(self) -> bool:
        """Whether the record is its whole file."""
        return self.start == 0 and self.end is None and self.seconds is None and self.box is None


@dataclass
class RecordFrames:
    """A record open for reading."""

    fps: Fraction
    """Mean frames per second, Hz; with a rate asked for, this one."""
    frames: Iterator[TimedFrame]
    """One at a time; images of a folder or zip have no times."""
    file_notes: Sequence[str] = ()
    """What is unusual about the file and how it is read."""
    gaps: Sequence[int] = ()
    """Frames before each damaged packet that has been passed over."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is unusual; complete when the frames end."""
        return (*self.file_notes, *gap_notes(self.gaps))


def open_record(
    record: VideoRecord,
    *,
    strict: bool = True,
    time_limit: float = TIME_LIMIT,
    fps: float | None = None,
) -> RecordFrames:
    """The record's frames, as they are or at a rate.

    Args:
        record: what to read.
        strict, time_limit: see `data.video.decode.read_frames`; images are always read strictly.
        fps: take, at this rate, the frame that is shown at each time; by default every frame.

    Raises:
        DecodeError: the source cannot be read; also while iterating.
    """
    notes, gaps = (), []
    if record.synthetic is not None:
        rate = Fraction(record.synthetic.fps).limit_denominator(1001)
        images = islice(record.synthetic.frames(record.path), record.start, record.end)
        frames = map(TimedFrame, images)
    elif record.images:
        names = record.images[record.start : record.end]
        if not names:
            raise DecodeError(
                f"{printable(record.path)}: no frame {record.start}; it has fewer images"
            )
        rate = Fraction(record.fps or 0).limit_denominator(1001)
        frames = map(TimedFrame, _images(record.path, names))
    else:
        timeline, rate, notes = read_timing(record.path, strict=strict, time_limit=time_limit)
        start, end = _stretch(record, rate, timeline)
        frames = iterate_frames(
            record.path, start, end, strict=strict, time_limit=time_limit, gaps=gaps
        )
    if record.box is not None:
        frames = _boxed(record, frames, record.box)
    if fps is not None:
        rate, frames = Fraction(fps), _at_rate(record, frames, rate, fps)
    return RecordFrames(rate, frames, notes, gaps)


def probe_record(record: VideoRecord) -> tuple[int, float]:
    """Frames and frame rate in Hz, without decoding: what the file says of itself.

    Headers may be wrong by some frames. Of images nothing is opened.

    Raises:
        DecodeError: the file cannot be opened as a video.
    """
    if record.synthetic is not None:
        return len(range(record.synthetic.num_frames)[record.start : record.end]), (
            record.synthetic.fps
        )
    if record.images:
        return len(record.images[record.start : record.end]), record.fps or 0.0
    info = probe_header(record.path)
    start, end = _stretch(record, Fraction(info.fps), None)
    return max(0, min(info.frames, info.frames if end is None else end) - start), info.fps


def source_sizes(record: VideoRecord) -> dict[str, int | None]:
    """Bytes of each file that the record is read from, None for one that is missing."""
    path = record.path
    files = [path / name for name in record.images] if record.images and path.is_dir() else [path]
    return {str(file): file.stat().st_size if file.exists() else None for file in files}


def _stretch(
    record: VideoRecord, rate: Fraction, timeline: Timeline | None
) -> tuple[int, int | None]:
    """The frames `[start, end)` of a record: those whose times are nearest to its seconds."""
    if record.seconds is None:
        return record.start, record.end
    times = timeline.seconds if timeline is not None and timeline.pts else []
    length = times[-1] + 1 / float(rate) if times else None
    if length is not None and record.seconds[0] >= length:
        raise DecodeError(
            f"{printable(record.path)}: {record.id}, the stretch from {record.seconds[0]:g} to "
            f"{record.seconds[1]:g} s, begins past the video's end at {length:.1f} s"
        )
    if times and is_variable(times):
        start, end = (
            int(np.abs(np.array(times) - time).argmin()) if time <= times[-1] else len(times)
            for time in record.seconds
        )
        start = min(start, len(times) - 1)
    else:
        start, end = (round(time * rate) for time in record.seconds)
    return start, max(end, start + 1)


def _boxed(
    record: VideoRecord, frames: Iterator[TimedFrame], box: tuple[int, int, int, int]
) -> Iterator[TimedFrame]:
    left, top, right, bottom = box
    for frame in frames:
        height, width = frame.image.shape[:2]
        if right > width or bottom > height:
            raise DecodeError(
                f"{printable(record.path)}: box {box} reaches beyond frames of {width}x{height} "
                "pixels, width by height"
            )
        yield replace(frame, image=frame.image[top:bottom, left:right])


def _at_rate(
    record: VideoRecord, frames: Iterator[TimedFrame], rate: Fraction, fps: float
) -> Iterator[TimedFrame]:
    """For k = 0, 1, ... the frame shown at time k / fps; the last one lasts a mean step."""
    slack = 1 / (4 * max(fps, float(rate)))  # timestamps are rounded, and cameras jitter
    held, held_time, origin, count = None, 0.0, 0.0, 0
    for number, frame in enumerate(frames):
        time = float(number / rate) if frame.seconds is None else frame.seconds
        if held is None:
            origin = time
        elif time - origin - held_time > MAX_GAP:
            raise DecodeError(
                f"{printable(record.path)}: no frame for {time - origin - held_time:.0f} s after "
                f"frame {number - 1}; the timestamps are damaged"
            )
        else:
            step = time - origin - held_time
            while count / fps + min(slack, step / 4) < time - origin:
                yield replace(held, seconds=count / fps)
                count += 1
        held, held_time = frame, time - origin
    while held is not None and count / fps < held_time + 1 / rate - slack:
        yield replace(held, seconds=count / fps)
        count += 1


def _images(path: Path, names: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Decode images in a folder or a zip one at a time; all must be of one size."""
    size = None
    with ExitStack() as stack:
        try:
            archive = None if path.is_dir() else stack.enter_context(zipfile.ZipFile(path))
        except (OSError, zipfile.BadZipFile) as error:
            raise DecodeError(f"{printable(path)}: cannot be opened as a zip ({error})") from error
        for name in names:
            image = _decode(path, name, archive)
            if size not in (None, image.shape[:2]):
                raise DecodeError(
                    f"{printable(path / name)}: {image.shape[:2]} pixels, "
                    f"but earlier frames have {size}"
                )
            size = image.shape[:2]
            yield image


def _decode(path: Path, name: str, archive: zipfile.ZipFile | None) -> np.ndarray:
    try:
        data = (path / name).read_bytes() if archive is None else archive.read(name)
        if not data:
            raise DecodeError(f"{printable(path / name)}: the file is empty")
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith(DEEP_MODES):
                raise DecodeError(
                    f"{printable(path / name)}: pixels of type {image.mode}, 8 bits are needed"
                )
            return np.array(image.convert("RGB"))
    except DecodeError:
        raise
    except Exception as error:  # a damaged image can raise nearly anything
        raise DecodeError(f"{printable(path / name)}: cannot be decoded ({error})") from error
