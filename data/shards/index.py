"""Shards: webdataset tars of videos, with an index of every video's place for reading by offset.

A folder of shards holds `shard-000000.tar`, ... and `index.json`, written last:

    schema        2
    hash          identifies the content: class names, every shard's sha256, the entries' keys
    config        what the videos were packed with
    class_names   label -> name
    shards        name, sha256, bytes, count of entries; mtime_ns where others wrote the tars
    location      folder or address of the tars, where the index does not lie beside them
    entries       in shard order, a list for each column: key, label (or null), frames, height,
                  width, fps; and members: file extension -> offset, size in the tar (-1: none)

webdataset reads the tars as they are; this package reads videos by `pread`, in any order.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np

from common.files import write_text
from data.shards.remote_cache import ShardCache, is_remote
from data.shards.tars import Entries, Entry, entries_to_columns
from data.video.video_record import CLIP_EXTENSIONS

SCHEMA = 2
INDEX = "index.json"
OPEN_SHARDS = 16  # per process; a shuffled order reads from at most 15 at a time


@dataclass(frozen=True)
class Shard:
    """One tar."""

    name: str
    """File name inside the folder."""
    sha256: str
    """Of the whole file."""
    bytes: int
    """Size of the file."""
    count: int
    """How many videos it holds."""
    mtime_ns: int | None = None
    """Time of its last change when it was indexed; None where it is not watched."""


class ShardIndex:
    """A folder of shards: what is in it, and any sample's bytes by number.

    Files are opened on first use, a few at a time, and read with `pread`, so one index serves many
    threads, and forked workers, at once. Pickling leaves open files behind.

    Attributes:
        location: folder or address of the tars.
        entries: all videos, by number.
        shard_sizes: entries per shard.
        shard_numbers: the shard of each entry.
    """

    def __init__(self, source: str, index: Mapping[str, Any], cache: ShardCache) -> None:
        self._files: dict[int, _File] = {}
        self._cache = cache
        self.location = str(index.get("location") or source)
        self.class_names: list[str] = index["class_names"]
        self.entries: Entries = index["entries"]
        self.shards: list[Shard] = index["shards"]
        self.hash: str = index["hash"]
        self.config: Mapping[str, Any] = index["config"]
        self.shard_sizes = [shard.count for shard in self.shards]
        self.shard_numbers = np.repeat(np.arange(len(self.shards)), self.shard_sizes)

    @classmethod
    def load(
        cls, source: str | Path, cache: ShardCache | None = None, *, check: bool = True
    ) -> Self:
        """Read the index in a folder or at an address; check that local shards are as it says.

        Args:
            source: a folder, or an address such as `https://host/path`, that holds `index.json`.
            cache: where remote shards are kept; default: `ShardCache()`.
            check: False leaves the shards alone.

        Raises:
            ValueError: no index, one of another schema, or a shard missing or of another size or
                time of change.
        """
        cache = cache or ShardCache()
        if is_remote(source):
            url = str(source).rstrip("/")
            loaded = cache.refresh(
                f"{url}/{INDEX}", lambda path: cls(url, _read(path, "the answer"), cache)
            )
        else:
            path = Path(source, INDEX)
            if not path.exists():
                raise ValueError(
                    f"{source}: no {INDEX} there. It is written when packing is complete: "
                    "run scripts/make_shards.py (again), or name the folder of the shards. "
                    "Shards of other tools get one by scripts/index_shards.py."
                )
            loaded = cls(str(source), _read(path, str(path)), cache)
        for number, shard in enumerate(loaded.shards if check and not loaded.is_remote else ()):
            tar = Path(loaded.path(number))
            stat = tar.stat() if tar.exists() else None
            if stat is None or stat.st_size != shard.bytes:
                found = (
                    "is missing" if stat is None else f"has {stat.st_size} bytes, not {shard.bytes}"
                )
                raise ValueError(
                    f"{tar}: the shard {found}. Copy it again, or delete it and pack again."
                )
            if shard.mtime_ns not in (None, stat.st_mtime_ns):
                raise ValueError(
                    f"{tar}: was changed or copied since it was indexed. "
                    "Run scripts/index_shards.py again; it looks only at what changed."
                )
        return loaded

    @property
    def is_remote(self) -> bool:
        """Whether the shards are downloaded when they are read."""
        return is_remote(self.location)

    def read(self, index: int) -> bytes:
        """The video or image file of entry `index`, as bytes.

        Raises:
            ValueError: the entry has no video, the shard ends early, or a download fails.
        """
        for extension in CLIP_EXTENSIONS:
            if self.entries.place(index, extension):
                return self.read_member(index, extension)
        entry = self.entries[index]
        raise ValueError(
            f"{self.path_of(index)}: {entry.key} has members {sorted(entry.members)}, none of them "
            "a video or an image"
        )

    def read_member(self, index: int, extension: str) -> bytes:
        """The bytes of one member of entry `index`; errors as in `read`."""
        place, key = self.entries.place(index, extension), self.entries.key(index)
        if place is None:
            raise ValueError(f"{self.path_of(index)}: {key} has no member {extension!r}")
        offset, size = place
        shard = int(self.shard_numbers[index])
        data = os.pread(self._file(shard).descriptor, size, offset)
        if len(data) != size:
            raise ValueError(
                f"{self.path(shard)}: {len(data)} of {size} bytes of {key}.{extension}; the "
                "shard is cut short. Delete it and pack again."
            )
        return data

    def path(self, shard: int) -> str:
        """Path or address of a shard."""
        return f"{self.location}/{self.shards[shard].name}"

    def path_of(self, index: int) -> str:
        """Path or address of the shard of entry `index`."""
        return self.path(int(self.shard_numbers[index]))

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _file(self, shard: int) -> "_File":
        file = self._files.get(shard)
        if file is None:
            entry = self.shards[shard]
            if self.is_remote:
                file = _File(self._cache.open(self.path(shard), entry.bytes, entry.sha256))
            else:
                file = _File(os.open(self.path(shard), os.O_RDONLY))
            self._files[shard] = file
            for other in list(self._files)[:-OPEN_SHARDS]:
                self._files.pop(other, None)  # closed when the last thread has read from it
        return file


class _File:
    """A file open for reading, closed when nobody holds it any more."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def write_index(
    folder: Path,
    class_names: Sequence[str],
    config: Mapping[str, Any],
    shards: Sequence[Shard],
    entries: Sequence[Entry],
    location: str | None = None,
) -> str:
    """Write `index.json`, with the entries in the order of the shards; returns the content hash."""
    content = [1, list(class_names), [shard.sha256 for shard in shards]]
    content.append([entry.key for entry in entries])
    index = {
        "schema": SCHEMA,
        "hash": sha256(json.dumps(content).encode()).hexdigest(),
        "config": config,
        "class_names": list(class_names),
        "shards": [
            {name: value for name, value in asdict(shard).items() if value is not None}
            for shard in shards
        ],
        **({} if location is None else {"location": location}),
        "entries": entries_to_columns(entries),
    }
    write_text(folder / INDEX, json.dumps(index) + "\n")
    return index["hash"]


def _read(path: Path, name: str) -> dict[str, Any]:
    """An index with its shards and entries as such; `ValueError` with `name` where damaged."""
    try:
        index = json.loads(path.read_bytes())
    except ValueError as error:  # of JSON, or bytes that are no text
        raise ValueError(f"{name}: not valid JSON ({error}). Pack again.") from None
    schema = index.get("schema") if isinstance(index, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{name}: schema {schema}, but this version reads {SCHEMA}. Pack again.")
    if missing := {"class_names", "hash", "config"} - index.keys():
        raise ValueError(f"{name}: damaged index (no {', '.join(sorted(missing))}). Pack again.")
    try:
        entries = Entries(index["entries"])
        shards = [Shard(**shard) for shard in index["shards"]]
        if sum(shard.count for shard in shards) != len(entries):
            raise ValueError(f"its shards do not hold {len(entries)} entries")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: damaged index ({error!r}). Pack again.") from None
    return {**index, "shards": shards, "entries": entries}
