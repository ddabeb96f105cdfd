"""The videos of an index, as columns: a million of them take little memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np

NUMBERS = {"frames": np.int32, "height": np.int32, "width": np.int32, "fps": np.float64}
"""Columns of numbers, besides the label."""


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


class Entries(Sequence[Entry]):
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

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
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
    extensions = sorted({extension for entry in entries for extension in entry.members})
    places = {
        extension: [entry.members.get(extension, (-1, -1)) for entry in entries]
        for extension in extensions
    }
    columns["members"] = {
        extension: {
            "offset": [offset for offset, _ in found],
            "size": [size for _, size in found],
        }
        for extension, found in places.items()
    }
    return columns
