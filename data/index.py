"""Shards: webdataset tars of videos, with an index of every sample's place for reading by offset.

A folder of shards holds `shard-000000.tar`, ... and `index.json`, written last:

    schema        1
    hash          identifies the content: class names and every shard's sha256
    config        what the videos were packed with
    class_names   label -> name
    shards        name, sha256, bytes, samples
    samples       in shard order: key, shard (number), label (or null), frames, height, width, fps,
                  members: file extension -> [offset, size] in the tar

webdataset reads the tars as they are; this package reads samples by `pread`, in any order.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from data.records import VIDEO_EXTENSIONS
from engine.files import atomic_path, read_json, sha256_file

SCHEMA = 1
INDEX = "index.json"


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


@dataclass(frozen=True)
class Shard:
    """One tar."""

    name: str
    """File name inside the folder."""
    sha256: str
    """Of the whole file."""
    bytes: int
    """Size of the file."""
    samples: int
    """How many videos it holds."""


class ShardIndex:
    """A folder of shards: what is in it, and any sample's bytes by number.

    Files are opened on first use and read with `pread`, so one index serves many threads, and
    forked workers, at once. Pickling leaves open files behind.
    """

    def __init__(
        self,
        folder: Path,
        *,
        class_names: list[str],
        samples: list[Sample],
        shards: list[Shard],
        content_hash: str,
        config: Mapping[str, Any],
    ) -> None:
        self._files: dict[int, int] = {}
        self.folder = folder
        self.class_names = class_names
        self.samples = samples
        self.shards = shards
        self.hash = content_hash
        self.config = config
        counts = Counter(sample.shard for sample in samples)
        self.shard_sizes = [counts[number] for number in range(len(shards))]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read `folder/index.json` and check that every shard is there with its full size.

        Raises:
            ValueError: no index, one of another schema, or a shard missing or of another size.
        """
        folder = Path(folder)
        path = folder / INDEX
        if not path.exists():
            raise ValueError(
                f"{folder}: no {INDEX} there. It is written when packing is complete: "
                "run scripts/make_shards.py (again), or name the folder of the shards."
            )
        index = read_json(path)
        schema = index.get("schema") if isinstance(index, dict) else None
        if schema != SCHEMA:
            raise ValueError(
                f"{path}: schema {schema}, but this version reads {SCHEMA}. Pack again."
            )
        try:
            loaded = cls(
                folder,
                class_names=index["class_names"],
                samples=[_sample(entry) for entry in index["samples"]],
                shards=[Shard(**entry) for entry in index["shards"]],
                content_hash=index["hash"],
                config=index["config"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged index ({error}). Pack again.") from None
        loaded._check_files()
        return loaded

    def read(self, index: int) -> bytes:
        """The video file of sample `index`, as bytes.

        Raises:
            ValueError: the sample has no video, or the shard ends early.
        """
        sample = self.samples[index]
        for extension in VIDEO_EXTENSIONS:
            if extension in sample.members:
                return self.read_member(index, extension)
        raise ValueError(
            f"{self._path(sample.shard)}: {sample.key} has members {sorted(sample.members)}, "
            "none of them a video"
        )

    def read_member(self, index: int, extension: str) -> bytes:
        """The bytes of one member of sample `index`; errors as in `read`."""
        sample = self.samples[index]
        offset, size = sample.members[extension]
        data = os.pread(self._file(sample.shard), size, offset)
        if len(data) != size:
            raise ValueError(
                f"{self._path(sample.shard)}: {len(data)} of {size} bytes of "
                f"{sample.key}.{extension}; the shard is cut short. Delete it and pack again."
            )
        return data

    def verify(self) -> None:
        """Read every shard once and compare its sha256; a difference is a `ValueError`."""
        for shard in self.shards:
            if sha256_file(self.folder / shard.name) != shard.sha256:
                raise ValueError(
                    f"{self.folder / shard.name}: its sha256 is not the one in {INDEX}; "
                    "the shard was changed or damaged. Delete it and pack again."
                )

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __len__(self) -> int:
        return len(self.samples)

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            self._files[shard] = os.open(self._path(shard), os.O_RDONLY)
        return self._files[shard]

    def _path(self, shard: int) -> Path:
        return self.folder / self.shards[shard].name

    def _check_files(self) -> None:
        for shard in self.shards:
            path = self.folder / shard.name
            size = path.stat().st_size if path.exists() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes, not {shard.bytes}"
                raise ValueError(
                    f"{path}: the shard {found}. Copy it again, or delete it and pack again."
                )


def write_index(
    folder: Path,
    class_names: Sequence[str],
    config: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
) -> str:
    """Write `index.json` from entries as in the format above; returns the content hash."""
    content = [SCHEMA, list(class_names), [shard["sha256"] for shard in shards]]
    index = {
        "schema": SCHEMA,
        "hash": sha256(json.dumps(content).encode()).hexdigest(),
        "config": config,
        "class_names": list(class_names),
        "shards": shards,
        "samples": samples,
    }
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index) + "\n")
    return index["hash"]


def _sample(entry: dict[str, Any]) -> Sample:
    members = {extension: (place[0], place[1]) for extension, place in entry["members"].items()}
    return Sample(**{**entry, "members": members})
