"""Files that are either whole or absent: written under a temporary name, synced, renamed."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

ALMOST_FULL = 1 << 20  # bytes; writers give up before the last one is taken
MANY = 1_000_000  # names that one pattern may stand for
PARTS, PART = 16, 1 << 14  # of a file, and the bytes of each, that `sampled_sha256` reads


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The temporary name keeps the suffix of `path`, because video muxers choose their format by it.
    Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or str(path)  # a failed write does not say where
            raise OSError(error.errno, os.strerror(error.errno), where) from error
        raise


@contextmanager
def full_disk_is_oserror(folder: str | Path) -> Iterator[None]:
    """Turn what torch and safetensors raise on a full disk into the `OSError` that it is."""
    try:
        yield
    except (RuntimeError, SafetensorError):
        if shutil.disk_usage(folder).free < ALMOST_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
        raise


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like `atomic_path` for a whole folder; an existing folder at `path` is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with full_disk_is_oserror(temporary):
            yield temporary
        sync_folder(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write text in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or broken one is a `ValueError` that names it."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder, not a JSON file") from None
    except ValueError as error:  # of JSON, or bytes that are no text
        raise ValueError(
            f"{path}: not valid JSON ({error}). Delete it and make it again."
        ) from None


def read_options(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of a command's options; anything else is a `ValueError` that names it."""
    try:
        options = yaml.safe_load(Path(path).read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ValueError(f"{path}: no such config file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(options or {}, dict):
        raise ValueError(f"{path}: holds {options!r}, not options and their values")
    return options or {}


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_sha256(path: str | Path) -> str:
    """Hex sha256 of a file's size and of 16 parts of 16,384 bytes, from its beginning to its end.

    For files that are too large to be read for this alone: another file of the same size, alike in
    all these parts, is not told from it.
    """
    size = Path(path).stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for part in range(PARTS):
            file.seek(max(0, size - PART) * part // (PARTS - 1))
            digest.update(file.read(PART))
    return digest.hexdigest()


def expand_names(pattern: str) -> list[str]:
    """Every name that `a-{000..127}.tar` stands for.

    Raises:
        ValueError: unbalanced braces, or more than a million names.
    """
    from webdataset.shardlists import expand_urls  # imports torch

    numbers = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+)\.\.(\d+)", pattern)]
    if math.prod(abs(b - a) + 1 for a, b in numbers) > MANY:
        raise ValueError(f"{pattern}: stands for more than {MANY} names")
    return expand_urls(pattern)


def sync_folder(folder: Path) -> None:
    """Make all that is in a folder safe against a loss of power."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, safe against a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def check_output_file(name: str, path: str | Path | None, *, suffix: str = ".json") -> None:
    """Refuse a file to be written where none can be, before the work that would be lost.

    Args:
        name: of the option, for the error.
        path: the file; None passes.
        suffix: of the file that the error gives as an example.

    Raises:
        ValueError: it is a folder, or lies below a file.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{name}={path}: is a folder. Name a file, such as {path / f'result{suffix}'}"
        )
    if (file := file_in_the_way(path.parent)) is not None:
        raise ValueError(f"{name}={path}: {file} is a file, so no folder can be made there")


def check_no_file(folder: Path) -> None:
    """Refuse (`ValueError`) a path where a file stands in the place of a folder."""
    if (file := file_in_the_way(folder)) is not None:
        raise ValueError(
            f"{folder}: {'' if file == folder else f'{file} '}is a file, not a folder. Choose "
            "another folder, or move the file away."
        )


def file_in_the_way(folder: Path) -> Path | None:
    """The file in the place of a folder or of one above it; None where a folder can be made."""
    for path in (folder, *folder.parents):
        if path.is_dir():
            return None
        if path.exists() or path.is_symlink():
            return path
    return None
