"""What can go wrong in reading a video file: one error for all of it, and a limit on the time."""

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Source = Path | str | bytes
"""A file, or the bytes of one."""

TIME_LIMIT = 600.0
"""Seconds that reading one file may take, unless the caller says otherwise."""


class DecodeError(ValueError):
    """A video that cannot be read; the message names the file and the cause."""


class TimeLimitError(DecodeError):
    """A video that takes longer to read than the caller allows."""


class Clock:
    """Seconds spent in reading one file; it stands still while the caller works on a frame."""

    def __init__(self, source: Source, limit: float) -> None:
        self._source = source
        self._limit = limit
        self._spent = 0.0
        self._since = time.monotonic()

    def check(self) -> None:
        """Raise `DecodeError` if the time is up."""
        if self._spent + time.monotonic() - self._since > self._limit:
            raise TimeLimitError(
                f"{name_of(self._source)}: reading takes longer than the limit of {self._limit:g} s"
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
def reporting(source: Source) -> Iterator[None]:
    """Turn whatever FFmpeg or PyAV raises on a bad file into a `DecodeError`."""
    try:
        yield
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


def printable(name: Path | str) -> str:
    r"""A file name as text: bytes that are not UTF-8 become `\xe9`, and then `\` becomes `\\`.

    So the name can be printed and stored, and be found again.
    """
    text = str(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
    return text
