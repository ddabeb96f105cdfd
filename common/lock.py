"""One writer at a time for a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
"""An empty file in the folder; it stays, and means nothing unless a process holds it."""


@contextmanager
def exclusive(folder: str | Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of `folder`, which is made if it is missing.

    The system gives the lock back when its process ends, in whatever way.

    Raises:
        ValueError: another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder}: another process is writing there. Wait until it ends, or write to "
            "another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()
