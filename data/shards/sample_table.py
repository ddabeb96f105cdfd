"""The samples of an index as columns: a million of them load at once and take little memory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from common.files import atomic_path

NUMBERS = {
    "shard": np.int32,
    "label": np.int64,
    "frames": np.int32,
    "height": np.int32,
    "width": np.int32,
    "fps": np.float64,
}
"""Columns with one number per sample; label -1 is no label."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One video in a shard."""

    key: str
    """The name its members share."""
    shard: int
    """Number of its shard."""
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


class Samples(Sequence[Sample]):
    """Samples by number; `samples[i]` makes a `Sample` of the columns, which are shared.

    Attributes:
        shard, label, frames, height, width, fps: arrays with one number per sample.
        extensions: every extension that a member has.
        places: int64 `(samples, extensions, 2)`: offset and size; size -1 where there is none.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], extensions: Sequence[str]):
        self.shard, self.label = columns["shard"], columns["label"]
        self.frames, self.fps = columns["frames"], columns["fps"]
        self.height, self.width = columns["height"], columns["width"]
        self.places = columns["places"]
        self.extensions = list(extensions)
        self._names = columns["names"]  # UTF-8 of all keys in a row
        self._ends = columns["ends"]

    @classmethod
    def from_entries(cls, entries: Sequence[Mapping[str, Any]]) -> Self:
        """From the `samples` of index.json; KeyError, TypeError or ValueError where damaged."""
        columns: dict[str, np.ndarray] = {
            name: np.array([_number(entry, name) for entry in entries], dtype=dtype)
            for name, dtype in NUMBERS.items()
        }
        extensions = sorted({name for entry in entries for name in entry["members"]})
        columns["places"] = np.full((len(entries), len(extensions), 2), -1, dtype=np.int64)
        for column, extension in enumerate(extensions):
            there = [
                (i, e["members"][extension])
                for i, e in enumerate(entries)
                if extension in e["members"]
            ]
            rows, places = zip(*there, strict=True)
            columns["places"][list(rows), column] = places
        names = [entry["key"].encode() for entry in entries]
        columns["names"] = np.frombuffer(b"".join(names), dtype=np.uint8)
        columns["ends"] = np.cumsum([len(name) for name in names], dtype=np.int64)
        return cls(columns, extensions)

    @classmethod
    def load(cls, path: Path) -> tuple[Self, dict[str, str]]:
        """What `save` wrote: the samples and the notes."""
        with safe_open(path, framework="np") as file:
            notes = file.metadata()
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return cls(columns, json.loads(notes["extensions"])), notes

    def save(self, path: Path, notes: Mapping[str, str]) -> None:
        """Write the columns as safetensors, with `notes` as metadata."""
        columns = {name: getattr(self, name) for name in (*NUMBERS, "places")}
        columns |= {"names": self._names, "ends": self._ends}
        with atomic_path(path) as temporary:
            save_file(columns, temporary, {**notes, "extensions": json.dumps(self.extensions)})

    def key(self, index: int) -> str:
        """The key of one sample."""
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])].tobytes().decode()

    def place(self, index: int, extension: str) -> tuple[int, int] | None:
        """(offset, size) of a member in its tar; None where the sample has no such member."""
        if extension not in self.extensions:
            return None
        offset, size = self.places[index, self.extensions.index(extension)].tolist()
        return None if size < 0 else (offset, size)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # counts from the end where negative, IndexError outside
        places = ((extension, self.place(index, extension)) for extension in self.extensions)
        label = int(self.label[index])
        return Sample(
            key=self.key(index),
            shard=int(self.shard[index]),
            label=None if label < 0 else label,
            frames=int(self.frames[index]),
            height=int(self.height[index]),
            width=int(self.width[index]),
            fps=float(self.fps[index]),
            members={extension: place for extension, place in places if place},
        )


def _number(entry: Mapping[str, Any], name: str) -> int | float:
    value = entry[name]
    return -1 if name == "label" and value is None else float(value) if name == "fps" else value
