"""Tars, written so that their content decides their bytes, and what is in them, as entries.

Tars of others are read by webdataset's rules: members are one sample if they follow each other and
their paths are equal up to the first dot in the file name. Extensions are taken in lower case.
Files named `__like_this__`, and what lies in such a folder, are no samples.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from data.video.video_record import CLIP_EXTENSIONS, VIDEO_EXTENSIONS

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
META = re.compile(r"__[^/]*__($|/)")
NUMBERS = {"frames": np.int32, "height": np.int32, "width": np.int32, "fps": np.float64}
"""Columns of numbers, besides the label."""


def find_tars(folder: Path) -> list[Path]:
    """All tars in a folder and below; a `ValueError` where there are none, or compressed ones."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    packed = [path for path in files if path.name.endswith(COMPRESSED)]
    if packed:
        raise ValueError(
            f"{packed[0]}: is compressed, so nothing in it can be read by its place. Decompress "
            f"it ({len(packed)} such files), or read it in streaming mode."
        )
    tars = [path for path in files if path.suffix == ".tar" and path.is_file()]
    if not tars:
        raise ValueError(f"{folder}: no .tar files there or below")
    return tars


class TarWriter:
    """Writes a tar whose bytes depend on its members' names and contents alone."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = sha256()
        self.size = 0
        """Bytes so far."""

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a member; returns its contents' (offset, size) in the file."""
        info = tarfile.TarInfo(name)  # owner 0, time 0
        info.size, info.mode = len(data), 0o644
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
        offset = self.size
        self._write(data)
        self._write(bytes(-self.size % tarfile.BLOCKSIZE))
        return offset, len(data)

    def close(self) -> str:
        """Write the end mark; returns the sha256 of the whole tar."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


def tar_samples(tar: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]], list[str]]]:
    """Samples of a tar in order: the key, extension -> (offset, size), and repeated extensions.

    Of a member that occurs twice in a sample the first counts.
    """
    from webdataset.tariterators import base_plus_ext  # takes a while to import

    def named() -> Iterator[tuple[str, str, tuple[int, int]]]:
        for name, place in tar_members(tar):
            key, extension = base_plus_ext(name)
            if key and extension is not None and not META.match(name):
                yield key, extension.lower(), place

    for key, sample in groupby(named(), key=itemgetter(0)):
        members: dict[str, tuple[int, int]] = {}
        repeated: list[str] = []
        for _, extension, place in sample:
            if extension in members:
                repeated.append(extension)
            else:
                members[extension] = place
        yield key, members, repeated


def has_end(tar: Path) -> bool:
    """Whether a readable tar ends as tars do, with zeros; one cut between members does not."""
    with open(tar, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for _ in archive:
            pass
        file.seek(archive.offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def tar_members(tar: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and (offset, size) of every file in a tar, from one pass over the headers.

    Raises:
        ValueError: it is no tar, or is cut short.
    """
    size = tar.stat().st_size
    try:
        with tarfile.open(tar, "r:") as archive:
            for entry in archive:
                if not entry.isreg():
                    continue
                if entry.offset_data + entry.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                yield entry.name, (entry.offset_data, entry.size)
    except tarfile.TarError as error:
        raise ValueError(f"{tar}: is no readable tar ({error}). Copy it again.") from None


def video_extension(extensions: Iterable[str]) -> str | None:
    """The first of a sample's extensions that is a video's, else an image's; None without one."""
    found = [e for e in extensions if plain_extension(e) in CLIP_EXTENSIONS]
    return min(found, key=lambda e: plain_extension(e) not in VIDEO_EXTENSIONS, default=None)


def plain_extension(extension: str) -> str:
    """`mp4` of `mp4`, `MP4` and `left.mp4`."""
    return extension.rsplit(".", 1)[-1].lower()


def find_label(members: dict[str, bytes]) -> tuple[int | str | None, str | None]:
    """(label, class name) that the members `cls` and `json` give; None for what they do not.

    Raises:
        ValueError: a label that is neither a number from 0 nor a name, or no JSON.
    """
    facts = json.loads(members["json"]) if "json" in members else {}
    facts = facts if isinstance(facts, dict) else {}
    given = members["cls"].decode().strip() if "cls" in members else None
    label = given if given is not None else facts.get("label", facts.get("cls"))
    if isinstance(label, str) and re.fullmatch(r"-?\d+", label):
        label = int(label)
    if isinstance(label, bool | float | list | dict):
        raise ValueError(f"label {label!r} is neither a number nor a name")
    return (None if label == -1 else label), facts.get("class_name")


@dataclass(frozen=True, slots=True)
class Entry:
    """One video in a shard."""

    key: str
    """The name its members share."""
    label: int | None
    """Index into the class names; None without a class."""
    frames: int
    """Frames, counted by decoding."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: float
    """Frames per second."""
    members: Mapping[str, tuple[int, int]]
    """Extension (`mp4`, `json`) to (offset, size) in bytes inside the tar."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `asdict` gave and JSON gives back; KeyError or TypeError where damaged."""
        members = {name: tuple(place) for name, place in values["members"].items()}
        return cls(**{**values, "members": members})


class Entries:
    """Entries by number; `entries[i]` makes an `Entry` of the columns, which are shared.

    Args:
        columns: those of `entries_to_columns`, as JSON gives them back.

    Attributes:
        label, frames, height, width, fps: arrays with one number per entry; label -1 is none.
        extensions: every extension that a member has.
        places: int64 `(entries, extensions, 2)`: offset and size; size -1 where there is none.

    Raises:
        KeyError, TypeError, AttributeError, ValueError, OverflowError: the columns are damaged.
    """

    def __init__(self, columns: Mapping[str, Any]):
        names = [key.encode() for key in columns["key"]]
        self._names = np.frombuffer(b"".join(names), dtype=np.uint8)  # of all keys in a row
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        labels = [-1 if label is None else label for label in columns["label"]]
        self.label = np.array(labels, dtype=np.int64)
        self.frames, self.height, self.width, self.fps = (
            np.array(columns[name], dtype=dtype) for name, dtype in NUMBERS.items()
        )
        self.extensions = sorted(columns["members"])
        self.places = np.empty((len(names), len(self.extensions), 2), dtype=np.int64)
        for number, extension in enumerate(self.extensions):
            member = columns["members"][extension]
            self.places[:, number, 0], self.places[:, number, 1] = member["offset"], member["size"]
        lengths = {len(self.label), *(len(getattr(self, name)) for name in NUMBERS)}
        if lengths != {len(names)}:
            raise ValueError(f"columns of {lengths} and {len(names)} entries")

    def key(self, index: int) -> str:
        """The key of one entry."""
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])].tobytes().decode()

    def place(self, index: int, extension: str) -> tuple[int, int] | None:
        """(offset, size) of a member in its tar; None where the entry has no such member."""
        if extension not in self.extensions:
            return None
        offset, size = self.places[index, self.extensions.index(extension)].tolist()
        return None if size < 0 else (offset, size)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Entry:
        index = range(len(self))[index]  # counts from the end where negative, IndexError outside
        places = ((extension, self.place(index, extension)) for extension in self.extensions)
        label = int(self.label[index])
        return Entry(
            key=self.key(index),
            label=None if label < 0 else label,
            frames=int(self.frames[index]),
            height=int(self.height[index]),
            width=int(self.width[index]),
            fps=float(self.fps[index]),
            members={extension: place for extension, place in places if place},
        )


def entries_to_columns(entries: Sequence[Entry]) -> dict[str, Any]:
    """For JSON: a list per field; `members` by extension, with size -1 where an entry has none."""
    columns: dict[str, Any] = {
        name: [getattr(entry, name) for entry in entries] for name in ("key", "label", *NUMBERS)
    }
    columns["members"] = {}
    for extension in sorted({extension for entry in entries for extension in entry.members}):
        places = (entry.members.get(extension, (-1, -1)) for entry in entries)
        offsets, sizes = zip(*places, strict=True)
        columns["members"][extension] = {"offset": offsets, "size": sizes}
    return columns
