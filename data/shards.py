"""Write shards of videos: parallel, resumable, the same bytes every time.

    write_shards(records, "shards/", ShardConfig(short_side=256), class_names, workers=8)
    index = ShardIndex.load("shards/")

Records are packed in order. A shard is closed when it is full; then a small json beside it lists
its samples, its sha256 and the records it covers. A run that was stopped goes on, when started
again, after the shards whose json matches their bytes. `index.json` is written last.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from data.index import INDEX, SCHEMA, Sample, Shard, ShardIndex, write_index
from data.packing import Failed, Packed, Packer, ShardConfig, TarWriter, member_json
from data.records import VideoRecord
from engine.files import atomic_path, read_json, sha256_file, write_json

__all__ = ["Sample", "Shard", "ShardConfig", "ShardIndex", "ShardReport", "write_shards"]

IDENTITY = "packing.json"
"""What a folder of shards is made from and how; another run must agree with it."""


@dataclass(frozen=True)
class ShardReport:
    """What became of the videos; also written as `report.json`."""

    found: int
    """Records given."""
    written: int
    """Videos in the shards."""
    short: int
    """Left out because they have too few frames."""
    bad: int
    """Left out because they cannot be decoded."""
    hours: float
    """Length of the videos written, in hours."""
    bytes: int
    """Size of all shards."""
    shards: int
    """Number of shards."""
    hash: str
    """Content hash, as in the index."""
    classes: Mapping[str, int]
    """Videos written, by class; empty without classes."""
    too_short: Sequence[Mapping[str, Any]]
    """Id and frames of each video that was too short."""
    failures: Sequence[Mapping[str, Any]]
    """Id and reason of each video that cannot be decoded."""


def write_shards(
    records: Sequence[VideoRecord],
    folder: str | Path,
    config: ShardConfig,
    class_names: Sequence[str] = (),
    *,
    bad: Literal["stop", "skip"] = "stop",
    workers: int = 0,
    progress: bool = True,
) -> ShardReport:
    """Pack `records` into webdataset tars under `folder`, with an index and a report.

    Running it again with the same arguments continues, or does nothing but check. One run at a
    time may write to a folder.

    Args:
        records: what to pack; the order is that of the samples.
        config: what the samples look like.
        class_names: names of the labels.
        bad: what to do with a video that cannot be decoded: end here, or leave it out and count it.
        workers: processes that decode and encode; 0 does it in this one.
        progress: show a bar.

    Raises:
        ValueError: records that contradict each other, a folder of shards made from other videos
            or in another way, a bad video under `bad="stop"`, or nothing to write.
    """
    folder = Path(folder)
    _check_records(records, config, class_names)
    _claim(folder, _identity(records, config, class_names))
    bar = tqdm(total=len(records), unit="video", disable=not progress)
    with bar, Packer(records, config, workers) as packer:
        parts = _Writer(folder, records, config, class_names, bad, packer, bar).run()
    return _conclude(folder, parts, len(records), config, list(class_names))


@dataclass
class _Writer:
    """Turns records into parts, each a full shard and the json that says what it covers."""

    folder: Path
    records: Sequence[VideoRecord]
    config: ShardConfig
    class_names: Sequence[str]
    bad: str
    packer: Packer
    bar: "tqdm[Any]"

    def run(self) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        position = 0
        while position < len(self.records):
            name = f"shard-{len(parts):06d}"
            part = _finished(self.folder / f"{name}.json", position)
            if part is None:
                part = self._write(name, position)
            else:
                self.bar.update(part["stop"] - position)
                for failure in part["failures"]:
                    self._object_to(failure["reason"])
            parts.append(part)
            position = part["stop"]
        return parts

    def _write(self, name: str, position: int) -> dict[str, Any]:
        tar = self.folder / f"{name}.tar"
        with atomic_path(tar) as temporary, open(temporary, "wb") as file:
            part = self._fill(TarWriter(file), tar.name, position)
        if part["shard"] is None:
            tar.unlink()
        write_json(self.folder / f"{name}.json", part)
        return part

    def _fill(self, tar: TarWriter, name: str, start: int) -> dict[str, Any]:
        """Add records from `start` on until the shard is full or they end."""
        samples, too_short, failures = [], [], []
        stop = start
        for number in range(start, len(self.records)):
            record, packed = self.records[number], self.packer.get(number)
            if isinstance(packed, Failed):
                self._object_to(packed.reason)
                failures.append({"id": record.id, "reason": packed.reason})
            elif not packed.video:
                too_short.append({"id": record.id, "frames": packed.frames})
            elif self._is_full(tar, len(samples), len(packed.video)):
                break
            else:
                samples.append(self._add(tar, record, packed))
            stop = number + 1
            self.bar.update()
        shard = Shard(name, tar.close(), tar.size, len(samples))
        return {
            "shard": asdict(shard) if samples else None,
            "start": start,
            "stop": stop,
            "samples": samples,
            "too_short": too_short,
            "failures": failures,
        }

    def _is_full(self, tar: TarWriter, samples: int, size: int) -> bool:
        limit = self.config.shard_mb * 1_000_000
        return samples == self.config.samples_per_shard or (samples > 0 and tar.size + size > limit)

    def _add(self, tar: TarWriter, record: VideoRecord, packed: Packed) -> dict[str, Any]:
        class_name = None if record.label is None else self.class_names[record.label]
        video = tar.add(f"{record.id}.{packed.extension}", packed.video)
        facts = tar.add(f"{record.id}.json", member_json(record, packed, class_name))
        return {
            "key": record.id,
            "label": record.label,
            "frames": packed.frames,
            "height": packed.height,
            "width": packed.width,
            "fps": packed.fps,
            "members": {packed.extension: video, "json": facts},
        }

    def _object_to(self, reason: str) -> None:
        if self.bad == "stop":
            raise ValueError(
                f"{reason}. Mend or remove it, or leave out such videos with bad=skip."
            )


def _finished(path: Path, position: int) -> dict[str, Any] | None:
    """The part that `path` describes, if it starts at `position` and its shard is undamaged."""
    if not path.exists():
        return None
    part = read_json(path)
    if part["start"] != position:
        return None
    shard = part["shard"]
    if shard is not None:
        tar = path.with_name(shard["name"])
        if not tar.exists() or sha256_file(tar) != shard["sha256"]:
            return None
    return part


def _check_records(
    records: Sequence[VideoRecord], config: ShardConfig, class_names: Sequence[str]
) -> None:
    if not records:
        raise ValueError("no videos to pack")
    repeated = [key for key, count in Counter(r.id for r in records).items() if count > 1]
    if repeated:
        raise ValueError(f"{len(repeated)} ids occur more than once, the first is {repeated[0]!r}")
    for record in records:
        if record.label is not None and not 0 <= record.label < len(class_names):
            raise ValueError(
                f"{record.path}: label {record.label}, but there are {len(class_names)} class names"
            )
        if not (config.reencode or record.is_whole):
            raise ValueError(
                f"{record.path}: {record.id} is a part of the file, "
                "which cannot be stored as it is. Use reencode=true."
            )


def _identity(
    records: Sequence[VideoRecord], config: ShardConfig, class_names: Sequence[str]
) -> dict[str, Any]:
    digest = sha256()
    for record in records:
        size = record.path.stat().st_size if record.path.exists() else None
        line = [record.id, size, record.label, record.start, record.end]
        digest.update(json.dumps(line).encode())
    return {
        "schema": SCHEMA,
        **asdict(config),
        "class_names": list(class_names),
        "videos": len(records),
        "sha256 of ids, sizes, labels and ranges": digest.hexdigest(),
    }


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make sure that the folder's shards, if any, are made from the same videos in the same way."""
    path = folder / IDENTITY
    if path.exists():
        there = read_json(path)
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
    elif any(folder.glob("*.tar")) or (folder / INDEX).exists():
        raise ValueError(
            f"{folder}: holds shards without {IDENTITY}, made by something else. "
            "Write to another folder."
        )
    write_json(path, identity)
    for leftover in folder.glob(".*.tmp*"):
        leftover.unlink()


def _conclude(
    folder: Path,
    parts: list[dict[str, Any]],
    found: int,
    config: ShardConfig,
    class_names: list[str],
) -> ShardReport:
    """Write the index and the report."""
    failures = [failure for part in parts for failure in part["failures"]]
    too_short = [video for part in parts for video in part["too_short"]]
    full = [part for part in parts if part["samples"]]
    samples = [
        {**sample, "shard": number}
        for number, part in enumerate(full)
        for sample in part["samples"]
    ]
    if not samples:
        reason = (
            failures[0]["reason"] if failures else f"all have fewer than {config.min_frames} frames"
        )
        raise ValueError(f"{folder}: none of {found} videos could be packed: {reason}")
    shards = [part["shard"] for part in full]
    content_hash = write_index(folder, class_names, asdict(config), shards, samples)
    counts = Counter(sample["label"] for sample in samples)
    report = ShardReport(
        found=found,
        written=len(samples),
        short=len(too_short),
        bad=len(failures),
        hours=sum(sample["frames"] / sample["fps"] for sample in samples) / 3600,
        bytes=sum(shard["bytes"] for shard in shards),
        shards=len(shards),
        hash=content_hash,
        classes={name: counts[label] for label, name in enumerate(class_names)},
        too_short=too_short,
        failures=failures,
    )
    write_json(folder / "report.json", asdict(report))
    return report
