"""Folders that commands write: one run at a time."""

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # takes seconds to import, and whoever has an Accelerator has imported it
    from accelerate import Accelerator

Result = TypeVar("Result")

LOCK = ".lock"
"""Names the process that writes to the folder; it stays, empty, and means nothing then."""

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


@contextmanager
def lock_folder(folder: str | Path, accelerator: "Accelerator | None" = None) -> Iterator[None]:
    """Keep other runs out of `folder`, which is made if it is missing, and tidy it.

    Files that a killed process left half-written go. The system gives the lock back when its
    process ends, in whatever way.

    Args:
        accelerator: connects several processes of one run; the main one takes the lock, and all
            learn it if another run holds it.

    Raises:
        ValueError: another run holds it, or a file stands where the folder is due.
    """
    folder = Path(folder)

    def begin() -> None:
        held.enter_context(_locked(folder))
        remove_temporary(folder)

    with ExitStack() as held:
        in_main_process(begin, accelerator)
        yield


def in_main_process(work: Callable[[], Result], accelerator: "Accelerator | None" = None) -> Result:
    """Do `work` in the main process; its result is returned, or its refusal raised, in all."""
    refusal: ValueError | OSError | None = None
    result: Any = None
    if accelerator is None or accelerator.process_index == 0:
        try:
            result = work()
        except OSError as error:
            refusal = error
        except ValueError as error:
            refusal = ValueError(str(error))  # subclasses may not survive the way to the others
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        result, refusal = broadcast_object_list([result, refusal])
    if refusal is not None:
        raise refusal
    return result


def check_no_file(folder: Path) -> None:
    """Refuse (`ValueError`) a path where a file stands in the place of a folder."""
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if path.exists() or path.is_symlink():
            raise ValueError(
                f"{folder}: {'' if path == folder else f'{path} '}is a file, not a folder. Choose "
                "another folder, or move the file away."
            )


def remove_temporary(folder: Path) -> None:
    """Remove what writers of `common.files` that were killed have left in a folder."""
    for path in folder.glob(".*.tmp*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`; one that was made for it and got nothing by failing goes again."""
    check_no_file(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise ValueError(
                f"{folder}: {_holder(descriptor)} is writing there. Wait until it ends, or write "
                "to another folder."
            ) from None
        if not os.fstat(descriptor).st_nlink:
            raise ValueError(f"{folder}: another process has just given it up. Start again.")
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        try:
            yield
        except BaseException:
            if made and descriptor in _held and [p.name for p in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
            raise
        finally:
            if descriptor in _held:
                os.ftruncate(descriptor, 0)
    finally:
        if descriptor in _held:  # not in a process forked meanwhile
            _held.discard(descriptor)
            os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (ValueError, KeyError, TypeError):  # it has not written its name yet
        return "another process"


def _forget_locks() -> None:
    """A forked process, such as a loader's worker, would hold the lock beyond its parent's end."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)
