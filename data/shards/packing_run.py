"""The videos of a packing run: whether they fit, which shards were made from them, a dry run."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from common.files import printable, write_json
from common.output_folder import IDENTITY, Input, check_identity, describe_identity, recorded_inputs
from common.pool import map_ordered
from data.importers import ImportResult
from data.shards.index import INDEX
from data.shards.pack_video import ShardConfig, probe_one
from data.shards.report import Failure, PackedShard, list_counts, list_names
from data.video.video_record import VideoRecord, source_sizes

log = logging.getLogger(__name__)

PRODUCTS = ("*.tar", INDEX)


def check_records(found: ImportResult, config: ShardConfig) -> None:
    """Refuse (`ValueError`) records that contradict each other, the config or the class names."""
    records, class_names = found.records, found.class_names
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
class HashedRecords:
    """The records with the sizes of their files, as hashes."""

    records: Sequence[VideoRecord]
    hashes: tuple[str, ...]
    """Of each record: what it says, and its files' sizes."""
    bytes: int
    """Of all files."""

    @classmethod
    def read(cls, records: Sequence[VideoRecord]) -> Self:
        """Look at the files, without opening them."""
        hashes, sizes = [], {}
        for record in records:
            files = source_sizes(record)
            sizes.update(files)
            line = [record.id, list(files.values()), record.label, record.start, record.end]
            line += [record.seconds, [printable(name) for name in record.images], record.fps]
            line += [repr(record.synthetic)] if record.synthetic is not None else []
            line += [record.box] if record.box is not None else []
            hashes.append(sha256(json.dumps(line).encode()).hexdigest())
        return cls(records, tuple(hashes), sum(size or 0 for size in sizes.values()))

    @property
    def inputs(self) -> dict[str, Input]:
        """All videos, for the folder's identity: their ids, sizes, labels and ranges."""
        digest = self.digest(range(len(self.records)))
        return {"videos": Input(f"{len(self.records)} videos", digest)}

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


@dataclass(frozen=True)
class Part:
    """Records `[start, stop)`, which one process turns into one shard or more."""

    number: int
    start: int
    stop: int

    def name(self, shard: int) -> str:
        """File name of a shard of this part, without its extension."""
        return f"shard-{self.number:06d}" + (f"-{shard}" if shard else "")

    def packed(self, folder: Path) -> Iterator[PackedShard]:
        """What the jsons of its shards say, up to the first that is missing or does not fit."""
        shards, position = 0, self.start
        while position < self.stop:
            path = folder / f"{self.name(shards)}.json"
            if not path.exists():
                return
            packed = PackedShard.load(path)
            if packed.start != position or not position < packed.stop <= self.stop:
                return
            yield packed
            shards, position = shards + 1, packed.stop


def begin_folder(folder: Path, settings: Mapping[str, Any], hashed: HashedRecords) -> None:
    """Record what the folder's shards are made from, if what is there was made in the same way.

    Where a run ended before all was packed, videos that were mended, removed or added since then
    are no reason to refuse it: the shards that they are not in stay. Of a complete folder only
    videos that could not be packed may have changed.

    Args:
        settings: what, besides the videos, decides the content of the shards.

    Raises:
        ValueError: the shards are others, or made by something else.
    """
    inputs, before = hashed.inputs, recorded_inputs(folder)
    may_go_on = before and before != inputs and _may_go_on(folder, hashed)
    check_identity(folder, settings, before if may_go_on else inputs, products=PRODUCTS)
    if may_go_on:
        log.warning("%s: the list of videos changed since the run before; continuing", folder)
    write_json(folder / IDENTITY, describe_identity(settings, inputs))


def _may_go_on(folder: Path, hashed: HashedRecords) -> bool:
    """Whether shards of other videos were made from some of these and may stay."""
    packed = [PackedShard.load(path) for path in folder.glob("shard-*.json")]
    if (folder / INDEX).exists():
        return all(map(hashed.is_of, packed)) and sum(map(len, packed)) == len(hashed.records)
    ids = {record.id for record in hashed.records}
    return not packed or any(ids & each.ids for each in packed)


def dry_run(scan: ImportResult, config: ShardConfig, workers: int) -> list[str]:
    """Look at each video's header and say, for people, what would be packed; nothing is written."""
    hours, short, failed = 0.0, [], []
    results = map_ordered(partial(probe_one, config=config), scan.records, workers)
    bar = tqdm(results, total=len(scan.records), unit="video")
    for seen, record in zip(bar, scan.records, strict=True):
        if isinstance(seen, Failure):
            failed.append(seen.reason)
            continue
        frames, fps = seen
        if frames < config.min_frames:
            short.append(f"{printable(record.path)}: {frames} frames")
        else:
            hours += frames / fps / 3600
    counts = Counter(record.label for record in scan.records)
    return [
        f"by the headers: {hours:.2f} hours, {len(short)} too short, {len(failed)} failed",
        *list_names("too short", short),
        *list_names("failed", failed),
        *list_counts({name: counts[label] for label, name in enumerate(scan.class_names)}),
        "Nothing was written.",
    ]
