"""Folders that commands write: one run at a time, which goes on only with what it was begun with.

    with lock_folder(out, accelerator):
        write_identity(out, config, {"latte": Input(export, sha256)}, accelerator)
        ...  # every file by common.files, under its final name only when it is complete

`identity.json` in the folder holds what decides its content: the config's fields that are not
marked MAY_CHANGE, and the sha256 of all that it is made from. A run that differs is refused.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.config import Config, differences, fixed_differences, fixed_values, json_values
from common.files import check_no_file, read_json, sha256_file, write_json

if TYPE_CHECKING:  # takes seconds to import; a caller with an Accelerator has imported it
    from accelerate import Accelerator

Result = TypeVar("Result")

IDENTITY = "identity.json"
LOCK = ".lock"
"""Names the process that writes to the folder; it stays, empty, and means nothing then."""

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


@dataclass(frozen=True)
class Input:
    """Something that the content of an output folder depends on."""

    path: str
    """Where it is, for people: it may move."""
    sha256: str
    """Hash of what matters of it."""

    @classmethod
    def file(cls, path: str | Path) -> "Input":
        """A file, by all its bytes."""
        return cls(str(path), sha256_file(path))

    def __str__(self) -> str:
        return f"{self.path} (sha256 {self.sha256[:12]})"


@contextmanager
def lock_folder(folder: str | Path, accelerator: "Accelerator | None" = None) -> Iterator[None]:
    """Keep other runs out of `folder`, which is made if it is missing, and tidy it.

    Files that a killed process left half-written go. The system gives the lock back when its
    process ends, in whatever way.

    Args:
        accelerator: connects several processes of one run; the main one takes the lock, and all
            learn it if another run holds it. None: one process does it all.

    Raises:
        ValueError: another run holds it, a file stands where the folder is due, or several
            processes were launched where one does it all.
    """
    folder = Path(folder)
    if accelerator is None:
        check_one_process()

    def begin() -> None:
        held.enter_context(_locked(folder))
        remove_temporary(folder)

    with ExitStack() as held:
        in_main_process(begin, accelerator)
        yield


def check_one_process() -> None:
    """Refuse (`ValueError`) to be one of several processes that a launcher has started."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1:
        raise ValueError(
            f"WORLD_SIZE={launched}, but this command runs in one process: start it without "
            "torchrun or accelerate launch"
        )


def check_identity(
    folder: str | Path,
    config: Config | Mapping[str, Any],
    inputs: Mapping[str, Input] | None = None,
    *,
    products: Sequence[str] = (),
) -> None:
    """Make sure that a folder is new or was begun with the same; nothing is written.

    Args:
        config: of the command; fields marked MAY_CHANGE do not count. Or any values for JSON.
        inputs: what the content is made from, by name.
        products: patterns of files that are never there without an identity.

    Raises:
        ValueError: another config or other inputs; says which, and what they were.
    """
    folder = Path(folder)
    check_no_file(folder)
    file = folder / IDENTITY
    if not file.exists():
        found = (path for pattern in products for path in folder.glob(pattern))
        if (first := next(found, None)) is not None:
            raise ValueError(
                f"{folder}: holds {first.name} without {IDENTITY}, made by something else. "
                "Choose another folder."
            )
        return
    changes = identity_changes(read_json(file), config, inputs)
    if changes:
        raise ValueError(
            f"{folder}: was made with other settings or inputs: {'; '.join(changes)}. Use the same "
            "to go on, choose another folder, or delete this one."
        )


def write_identity(
    folder: str | Path,
    config: Config | Mapping[str, Any],
    inputs: Mapping[str, Input] | None = None,
    accelerator: "Accelerator | None" = None,
    *,
    products: Sequence[str] = (),
) -> None:
    """Check the identity of a folder and record it, in the main process; all learn a refusal.

    Arguments and errors are those of `check_identity`.
    """

    def write() -> None:
        check_identity(folder, config, inputs, products=products)
        write_json(Path(folder) / IDENTITY, describe_identity(config, inputs))

    in_main_process(write, accelerator)


def recorded_inputs(folder: str | Path) -> dict[str, Input]:
    """The inputs that a folder's content was made from; none in a new folder."""
    file = Path(folder) / IDENTITY
    found = read_json(file)["inputs"] if file.exists() else {}
    return {name: Input(**values) for name, values in found.items()}


def describe_identity(
    config: Config | Mapping[str, Any], inputs: Mapping[str, Input] | None = None
) -> dict[str, Any]:
    """What decides a folder's content, for JSON."""
    is_config = isinstance(config, Config)
    identity = {
        "command": type(config).__name__ if is_config else None,
        "config": fixed_values(config) if is_config else dict(config),
        "inputs": {name: asdict(each) for name, each in (inputs or {}).items()},
    }
    return json_values(identity)


def identity_changes(
    found: Mapping[str, Any], config: Config | Mapping[str, Any], inputs: Mapping[str, Input] | None
) -> list[str]:
    """What a rerun changes of an identity that it `found`: one line per field or input."""
    wanted = describe_identity(config, inputs)
    if changes := differences(found["command"], wanted["command"], "command"):
        return changes
    if isinstance(config, Config):
        changes = fixed_differences(found["config"], config)
    else:
        changes = differences(found["config"], wanted["config"])
    before = {name: Input(**values) for name, values in found["inputs"].items()}
    now = inputs or {}
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old is None or new is None or old.sha256 != new.sha256:
            changes.append(f"{name} was {old or 'not given'}, now {new or 'not given'}")
    return changes


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


def remove_temporary(folder: Path) -> None:
    """Remove what writers of `common.files` that were killed have left in a folder."""
    for path in folder.glob(".*.tmp*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`; if nothing came of it, what was made for it goes again."""
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
            raise ValueError(
                f"{folder}: another process has just finished and removed the lock file. Run the "
                "command again."
            )
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        try:
            yield
        except BaseException:
            if descriptor in _held and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                if made:
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
