"""What all importers share: their interface, ids, tables, and finding the right root."""

import csv
import os
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Le

from common.config import Config
from common.files import printable
from data.video.video_record import VideoRecord

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # captions may be longer than the 131,072 allowed

DEPTH = 2
"""Levels above and below the given root at which the right one is looked for."""
NAMED = 3
"""Most names that a message lists."""
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation"),
    "test": ("test", "testing"),
}
"""What folders and columns call the parts of a set."""

Split = Literal["train", "val", "test"]
FrameRate = Annotated[float, Gt(0), Le(1000)]
"""Frames per second, Hz."""


@dataclass(frozen=True)
class ImportResult:
    """What a scan of a data set found; nothing is decoded for it."""

    records: list[VideoRecord]
    """What can be packed."""
    class_names: list[str] = field(default_factory=list)
    """In order of the labels; empty without classes."""
    missing: list[str] = field(default_factory=list)
    """Videos that the annotations name and no file is there for."""
    unlabeled: list[str] = field(default_factory=list)
    """Files that the annotations do not name."""
    notes: list[str] = field(default_factory=list)
    """What was unusual and how it was read."""


@dataclass(frozen=True, kw_only=True)
class Importer(Config, ABC):
    """A data set as it lies on disk."""

    root: Path
    """Folder of the data set."""

    @abstractmethod
    def scan(self) -> ImportResult:
        """Find the videos and their labels.

        Raises:
            ValueError: `root` or the annotations are not as they must be; says what was expected.
        """


def plain(name: str) -> str:
    """A name as an id: `__` for slashes, `_` for dots; `%E9` for a byte that is not UTF-8."""
    name = name.replace("/", "__").replace(".", "_").replace("\\", "_")
    return "".join(
        f"%{ord(letter) - 0xDC00:02X}" if 0xDC80 <= ord(letter) <= 0xDCFF else letter
        for letter in name
    )


def ids_of(names: Sequence[str], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """An id from each name; where names are alike, a hash of the key, which is unique, is added.

    Returns:
        The ids, and a note if there are hashes.
    """
    ids = [plain(name) for name in names]
    counts = Counter(ids)
    alike = []
    for i, key in enumerate(keys):
        if counts[ids[i]] > 1:
            alike.append(key)
            ids[i] += f"-{sha256(os.fsencode(key)).hexdigest()[:8]}"
    return ids, [f"names alike, ids told apart by a hash: {some(alike)}"] if alike else []


def by_id(paths: Iterable[Path], id_of: Callable[[Path], str]) -> tuple[dict[str, Path], list[str]]:
    """Files by id, and a note of files left out because another of the same size has their id.

    Raises:
        ValueError: two files of different sizes have one id.
    """
    found: dict[str, Path] = {}
    copies = []
    for path in paths:
        id = id_of(path)
        first = found.setdefault(id, path)
        if first is path:
            continue
        if first.stat().st_size != path.stat().st_size:
            raise ValueError(
                f"{printable(path)} and {printable(first)} are different videos of one id, "
                f"{id}. Remove one of them."
            )
        copies.append(str(path))
    return found, [f"copies left out: {some(copies)}"] if copies else []


def normalized(name: str) -> str:
    """A class name for comparison: case, blanks, `_` and punctuation do not count."""
    letters = "".join(letter for letter in name.casefold() if letter.isalnum())
    return letters or name


def find_root(
    root: Path, fits: Callable[[Path], bool], expected: str
) -> tuple[Path | None, list[str]]:
    """`root`, or the one folder a level or two below it that fits, with a note that says so.

    Args:
        fits: whether a folder is what the importer wants.
        expected: what that is, for messages: "a folder with ...".

    Returns:
        None where nothing fits.

    Raises:
        ValueError: `root` is not there, is inside of a folder that fits, or several below it fit.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected {expected}")
    if fits(root):
        return root, []
    level = [root]
    for depth in range(1, DEPTH + 1):
        level = [child for folder in level for child in subfolders(folder)]
        below = [folder for folder in level if fits(folder)]
        if len(below) == 1:
            return below[0], [f"{root} is {_levels(depth)} too high; reading {below[0]}"]
        if below:
            raise ValueError(
                f"{root}: {_levels(depth)} too high, and {some(map(str, below))} all fit. "
                f"Name one of them: expected {expected}."
            )
    for depth, folder in enumerate(root.resolve().parents[:DEPTH], 1):
        if fits(folder):
            raise ValueError(
                f"{root}: {_levels(depth)} too low. Give {folder}: expected {expected}, "
                f"found {listing(root)}."
            )
    return None, []


def not_found(root: Path, expected: str) -> ValueError:
    """The error for a root in which nothing is as expected."""
    return ValueError(f"{root}: expected {expected}, but found {listing(root)}")


def split_folders(root: Path, split: str) -> list[Path]:
    """Folders directly in `root` that are called as `split` may be; `all` means any split."""
    splits = SPLITS if split == "all" else [split]
    names = {name for part in splits for name in SPLITS[part]}
    return [folder for folder in subfolders(root) if folder.name.casefold() in names]


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in `folder` that are not hidden, by name; none where it cannot be read."""
    return _entries(folder, os.DirEntry.is_dir)


def files_in(folder: Path) -> list[Path]:
    """Files directly in `folder` that are not hidden, by name; none where it cannot be read."""
    return _entries(folder, os.DirEntry.is_file)


def _entries(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and wanted(e)]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def listing(folder: Path) -> str:
    """What lies in a folder, in a few words."""
    folders = [path.name + "/" for path in subfolders(folder)]
    files = [path.name for path in files_in(folder)]
    return some(folders + files) if folders or files else "nothing"


def some(names: Iterable[str | Path], shown: int = NAMED) -> str:
    """The first names of many, and how many more there are."""
    names = [printable(name) for name in names]
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not blank, whatever ends them; a `ValueError` names it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[dict[str, str]]:
    """Rows of a csv file with a header, one at a time, as {column: value}.

    Args:
        columns: the columns wanted; other columns are passed over.
        optional: columns that give empty values where the file does not have them.

    Raises:
        ValueError: the file cannot be read, or has not all of `columns`.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            if missing := [name for name in columns if name not in reader.fieldnames]:
                raise ValueError(
                    f"{path}: no column {missing[0]!r}; it has {', '.join(reader.fieldnames)}"
                )
            for row in reader:
                yield {name: (row.get(name) or "").strip() for name in (*columns, *optional)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as csv ({error})") from None


def _levels(count: int) -> str:
    return f"{count} level{'s' if count > 1 else ''}"
