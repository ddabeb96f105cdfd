"""What a folder of shards is made from and how: another run that writes there must agree."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from common.files import read_json, write_json
from data.shards.index import INDEX, SCHEMA
from data.shards.pack_video import ShardConfig
from data.shards.report import Failure, PackedShard
from data.video.decode_errors import printable
from data.video.video_record import VideoRecord, source_sizes

log = logging.getLogger(__name__)

IDENTITY = "packing.json"
SOURCES = "sha256 of ids, sizes, labels and ranges"


def check_records(
    records: Sequence[VideoRecord], config: ShardConfig, class_names: Sequence[str]
) -> None:
    """Refuse (`ValueError`) records that contradict each other, the config or the class names."""
    if not records:
        raise ValueError("no videos to pack")
    repeated = [key for key, count in Counter(r.id for r in records).items() if count > 1]
    if repeated:
        first, second, *_ = (printable(r.path) for r in records if r.id == repeated[0])
        raise ValueError(
            f"{len(repeated)} ids occur more than once, the first is {repeated[0]!r}: "
            f"{first} and {second}"
        )
    for record in records:
        if record.label is not None and not 0 <= record.label < len(class_names):
            raise ValueError(
                f"{printable(record.path)}: label {record.label}, "
                f"but there are {len(class_names)} class names"
            )
        if (record.images or record.synthetic) and not config.reencode:
            raise ValueError(
                f"{printable(record.path)}: frames that are images or computed must be encoded. "
                "Use reencode=true."
            )
        if not (config.reencode or record.is_whole):
            raise ValueError(
                f"{printable(record.path)}: {record.id} is a part of the file, "
                "which cannot be stored as it is. Use reencode=true."
            )


@dataclass(frozen=True)
class Sources:
    """The records with the sizes of their files, as hashes."""

    records: Sequence[VideoRecord]
    hashes: tuple[str, ...]
    """Of each record: what it says, and its files' sizes."""
    bytes: int
    """Of all files."""

    @classmethod
    def of(cls, records: Sequence[VideoRecord]) -> Self:
        """Look at the files, without opening them."""
        hashes, sizes = [], {}
        for record in records:
            files = source_sizes(record)
            sizes.update(files)
            line = [record.id, list(files.values()), record.label, record.start, record.end]
            line += [record.seconds, [printable(name) for name in record.images], record.fps]
            line += [repr(record.synthetic)] if record.synthetic is not None else []
            hashes.append(sha256(json.dumps(line).encode()).hexdigest())
        return cls(records, tuple(hashes), sum(size or 0 for size in sizes.values()))

    def digest(self, numbers: Iterable[int], failures: Sequence[Failure] = ()) -> str:
        """Hash of the records with these numbers, but for those that failed."""
        failed = {failure.id for failure in failures}
        kept = (self.hashes[n] for n in numbers if self.records[n].id not in failed)
        return sha256("".join(kept).encode()).hexdigest()

    def file_hash(self, number: int) -> str:
        """Hash of a record, its file's size and the time of its last change."""
        path = self.records[number].path
        changed = path.stat().st_mtime_ns if path.exists() else 0
        return sha256(f"{self.hashes[number]} {changed}".encode()).hexdigest()

    def is_of(self, packed: PackedShard) -> bool:
        """Whether a shard was made from these records, whatever became of those that failed."""
        covered = range(packed.start, min(packed.stop, len(self.records)))
        return self.digest(covered, packed.failures) == packed.records


def identity_of(
    sources: Sources, config: ShardConfig, class_names: Sequence[str]
) -> dict[str, Any]:
    """What decides the content of the shards."""
    return {
        "schema": SCHEMA,
        **asdict(config),
        "class_names": list(class_names),
        "videos": len(sources.records),
        SOURCES: sources.digest(range(len(sources.records))),
    }


def write_identity(folder: Path, identity: dict[str, Any], sources: Sources) -> None:
    """Make the folder this run's, if what is there was made in the same way from the same videos.

    Where a run ended before all was packed, videos that were mended, removed or added since then
    are no reason to refuse it: the shards that they are not in stay. Of a complete folder only
    videos that could not be packed may have changed.
    """
    path = folder / IDENTITY
    if path.exists():
        there = read_json(path)
        same = {key: identity[key] for key in ("videos", SOURCES)}
        if {**there, **same} != identity or not _may_go_on(folder, there, identity, sources):
            check_identity(folder, identity)
    elif any(folder.glob("*.tar")) or (folder / INDEX).exists():
        raise ValueError(
            f"{folder}: holds shards without {IDENTITY}, made by something else. "
            "Write to another folder."
        )
    write_json(path, identity)


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse (`ValueError`) shards made from other videos or in another way."""
    there = read_json(folder / IDENTITY)
    differences = [
        f"{key}: {there.get(key)} there, {identity.get(key)} now"
        for key in {**there, **identity}
        if there.get(key) != identity.get(key)
    ]
    if differences:
        raise ValueError(
            f"{folder}: holds other shards ({'; '.join(differences)}). "
            "Delete the folder or write to another one."
        )


def _may_go_on(
    folder: Path, there: dict[str, Any], identity: dict[str, Any], sources: Sources
) -> bool:
    if there == identity:
        return True
    packed = [PackedShard.load(path) for path in folder.glob("shard-*.json")]
    if (folder / INDEX).exists():
        return there["videos"] == identity["videos"] and all(map(sources.is_of, packed))
    ids = {record.id for record in sources.records}
    if packed and not any(ids & each.ids for each in packed):
        return False
    log.warning("%s: the videos are not those that the run before found; going on", folder)
    return True
