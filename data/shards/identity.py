"""What a folder of shards is made from and how: another run that writes there must agree."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from common.files import read_json, write_json
from data.shards.index import INDEX, SCHEMA
from data.shards.pack_video import ShardConfig
from data.video.decode_errors import printable
from data.video.video_record import VideoRecord, source_sizes

IDENTITY = "packing.json"


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
        if record.images and not config.reencode:
            raise ValueError(
                f"{printable(record.path)}: frames that are images must be encoded. "
                "Use reencode=true."
            )
        if not (config.reencode or record.is_whole):
            raise ValueError(
                f"{printable(record.path)}: {record.id} is a part of the file, "
                "which cannot be stored as it is. Use reencode=true."
            )


def identify(
    records: Sequence[VideoRecord], config: ShardConfig, class_names: Sequence[str]
) -> tuple[dict[str, Any], int]:
    """What decides the content of the shards; and the bytes of all files found."""
    digest = sha256()
    sizes: dict[str, int | None] = {}
    for record in records:
        files = source_sizes(record)
        sizes.update(files)
        line = [record.id, list(files.values()), record.label, record.start, record.end]
        line += [record.seconds, [printable(name) for name in record.images], record.fps]
        digest.update(json.dumps(line).encode())
    identity = {
        "schema": SCHEMA,
        **asdict(config),
        "class_names": list(class_names),
        "videos": len(records),
        "sha256 of ids, sizes, labels and ranges": digest.hexdigest(),
    }
    return identity, sum(size or 0 for size in sizes.values())


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder this run's: make sure that any shards in it are the same, and tidy up."""
    path = folder / IDENTITY
    if path.exists():
        agree(folder, identity)
    elif any(folder.glob("*.tar")) or (folder / INDEX).exists():
        raise ValueError(
            f"{folder}: holds shards without {IDENTITY}, made by something else. "
            "Write to another folder."
        )
    for leftover in folder.glob(".*.tmp*"):
        leftover.unlink()
    write_json(path, identity)


def agree(folder: Path, identity: dict[str, Any]) -> None:
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
