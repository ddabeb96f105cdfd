"""The frames of a record, whether they lie in a video file, in a folder of images or in a zip."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data.video.decode import TIME_LIMIT, DecodeError, iterate_frames
from data.video.probe import frame_rate, probe_header
from data.video.video_record import VideoRecord

DEEP_MODES = ("I", "F")
"""Pillow's modes of more than 8 bits per channel begin so; converting them clips their values."""


def open_record(
    record: VideoRecord, *, strict: bool = True, time_limit: float = TIME_LIMIT
) -> tuple[Fraction, Iterator[UInt8[np.ndarray, "h w 3"]]]:
    """Frame rate in Hz, and an iterator over the record's frames, RGB in 0..255.

    Args:
        record: what to read; a stretch given in seconds is rounded to frames at the mean rate.
        strict, time_limit: see `data.video.decode.read_frames`; images are always read strictly.

    Raises:
        DecodeError: the source cannot be read; also while iterating.
    """
    if record.images:
        names = record.images[record.start : record.end]
        if not names:
            raise DecodeError(f"{record.path}: no frame {record.start}; it has fewer images")
        return Fraction(record.fps or 0).limit_denominator(1001), _images(record.path, names)
    rate = frame_rate(record.path)
    start, end = _stretch(record, rate)
    frames = iterate_frames(record.path, start, end, strict=strict, time_limit=time_limit)
    return rate, frames


def probe_record(record: VideoRecord) -> tuple[int, float]:
    """Frames and frame rate in Hz, without decoding: what the file says of itself.

    Headers may be wrong by some frames. Of images nothing is opened.

    Raises:
        DecodeError: the file cannot be opened as a video.
    """
    if record.images:
        return len(record.images[record.start : record.end]), record.fps or 0.0
    info = probe_header(record.path)
    start, end = _stretch(record, Fraction(info.fps))
    return max(0, min(info.frames, info.frames if end is None else end) - start), info.fps


def source_sizes(record: VideoRecord) -> dict[str, int | None]:
    """Bytes of each file that the record is read from, None for one that is missing."""
    path = record.path
    files = [path / name for name in record.images] if record.images and path.is_dir() else [path]
    return {str(file): file.stat().st_size if file.exists() else None for file in files}


def _stretch(record: VideoRecord, rate: Fraction) -> tuple[int, int | None]:
    if record.seconds is None:
        return record.start, record.end
    start, end = (round(time * rate) for time in record.seconds)
    return start, max(end, start + 1)


def _images(path: Path, names: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Decode images in a folder or a zip one at a time; all must be of one size."""
    size = None
    with ExitStack() as stack:
        try:
            archive = None if path.is_dir() else stack.enter_context(zipfile.ZipFile(path))
        except (OSError, zipfile.BadZipFile) as error:
            raise DecodeError(f"{path}: cannot be opened as a zip ({error})") from error
        for name in names:
            image = _decode(path, name, archive)
            if size not in (None, image.shape[:2]):
                raise DecodeError(
                    f"{path}/{name}: {image.shape[:2]} pixels, but earlier frames have {size}"
                )
            size = image.shape[:2]
            yield image


def _decode(path: Path, name: str, archive: zipfile.ZipFile | None) -> np.ndarray:
    try:
        data = (path / name).read_bytes() if archive is None else archive.read(name)
        if not data:
            raise DecodeError(f"{path}/{name}: the file is empty")
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith(DEEP_MODES):
                raise DecodeError(f"{path}/{name}: pixels of type {image.mode}, 8 bits are needed")
            return np.array(image.convert("RGB"))
    except DecodeError:
        raise
    except Exception as error:  # a damaged image can raise nearly anything
        raise DecodeError(f"{path}/{name}: cannot be decoded ({error})") from error
