"""An index for webdataset tars that other tools wrote, which are read but never changed.

    index_external("their/shards")              # writes their/shards/index.json
    index_external("their/shards", "my/index")  # where their folder cannot be written

Each tar is read once: its headers, its checksum, and every video, which is decoded. What was found
in a tar is kept in `index.parts`, so a run that was stopped goes on, and a later one looks only at
tars that changed.
"""

import os
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from tqdm import tqdm

from common.files import read_json, sha256_file, write_json
from common.output_folder import IDENTITY, lock_folder, remove_temporary
from common.pool import map_ordered
from data.shards.index import Shard, write_index
from data.shards.report import ExternalReport, Failure
from data.shards.tars import (
    Entry,
    find_label,
    find_tars,
    has_end,
    plain_extension,
    tar_samples,
    video_extension,
)
from data.video.probe import check_frames, probe

PARTS = "index.parts"
VERSION = 3  # of what is kept of a tar


@dataclass
class ScannedTar:
    """What is in one tar; kept as JSON in `index.parts`."""

    read_as: dict[str, Any]
    """What the scan depends on."""
    shard: Shard
    """The tar."""
    found: int = 0
    """Samples in it."""
    entries: list[Entry] = field(default_factory=list)
    """Its videos, not labeled yet."""
    labels: list[int | str | None] = field(default_factory=list)
    """Of each entry, as stored."""
    class_names: list[str | None] = field(default_factory=list)
    """Of each entry, where the tar gives one."""
    failures: list[Failure] = field(default_factory=list)
    """Videos that cannot be decoded."""
    without_video: list[str] = field(default_factory=list)
    """Keys of samples that hold no video."""
    cut: bool = False
    """Whether it lacks its end."""

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """From JSON; None where there is none or another version wrote it."""
        values = read_json(path) if path.exists() else {}
        if values.get("read_as", {}).get("version") != VERSION:
            return None
        values["shard"] = Shard(**values["shard"])
        values["entries"] = [Entry.from_json(entry) for entry in values["entries"]]
        values["failures"] = [Failure(**failure) for failure in values["failures"]]
        return cls(**values)

    def check(self, tar: Path) -> None:
        """Refuse (`ValueError`) unreadable videos and a missing end."""
        if self.failures:
            failure = self.failures[0]
            raise ValueError(
                f"{tar}: {failure.id}: {failure.reason}. Leave out such videos with on_error=skip."
            )
        if self.cut:
            raise ValueError(
                f"{tar}: no end-of-archive marker: truncated, or written without it. Copy it "
                "again, or take the samples that it has with on_error=skip."
            )


def index_external(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    strict: bool = True,
    on_error: Literal["stop", "skip"] = "stop",
    decode: Literal["all", "first"] = "all",
    workers: int = 0,
) -> ExternalReport:
    """Index every tar in `folder` and below; run it again to go on, or after a change.

    Members belong together by webdataset's rule: their paths are equal up to the first dot of the
    file name. The video is the first member with a video's extension. The label is the number in
    the member `cls`, or `label` or `cls` in the member `json`; there, `class_name` may name it, and
    a label may be a name, too. Keys that occur in several tars get the tar's name before them.

    Args:
        out: folder for the index; default: `folder`. Give this one to `ShardIndex` then.
        strict: see `read_frames`.
        on_error: what to do with a video that cannot be decoded, or a tar that has no end: end
            here, or leave the video out, take what the tar has, and count them.
        decode: every frame of a video, so that loading refuses no video that is taken; or, in a
            small part of the time, its first frame, where packets and header tell the others.
        workers: processes, each with a tar of its own; 0 does it in this one.

    Raises:
        ValueError: no tars, a broken or compressed one, labels that contradict each other, a
            folder that `write_shards` wrote, a bad video under `on_error="stop"`, nothing to index,
            or another run that writes to `out`.
    """
    folder = Path(folder)
    target = Path(out) if out is not None else folder
    tars = find_tars(folder)
    if (folder / IDENTITY).exists():
        raise ValueError(
            f"{folder}: scripts/make_shards.py wrote these shards. Run it again instead."
        )
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise ValueError(f"{target}: cannot be written. Give another folder for the index: out.")
    scan = partial(
        _scan_or_load,
        folder=folder,
        parts=target / PARTS,
        read_as={"version": VERSION, "strict": strict, "decode": decode},
        stop=on_error == "stop",
    )
    with lock_folder(target):
        remove_temporary(target / PARTS)
        results = map_ordered(scan, tars, workers)
        bar = tqdm(results, total=len(tars), unit="tar", desc="indexing")
        return _conclude(list(bar), folder, target, strict, decode)


def _scan_or_load(
    tar: Path, *, folder: Path, parts: Path, read_as: dict[str, Any], stop: bool
) -> ScannedTar:
    """What is in one tar; from an earlier run if the tar is the same."""
    name = tar.relative_to(folder).as_posix()
    path = parts / f"{name.replace('/', '__')}.json"
    stat, old = tar.stat(), ScannedTar.load(path)
    same = old is not None and (old.read_as, old.shard.bytes) == (read_as, stat.st_size)
    if old is not None and same and old.shard.mtime_ns == stat.st_mtime_ns:
        scanned = old
    elif old is not None and same and old.shard.sha256 == sha256_file(tar):
        scanned = replace(old, shard=replace(old.shard, mtime_ns=stat.st_mtime_ns))
    else:
        scanned = _scan(tar, name, read_as)
    if stop:
        scanned.check(tar)
    if scanned is not old:
        write_json(path, asdict(scanned))
    return scanned


def _scan(tar: Path, name: str, read_as: dict[str, Any]) -> ScannedTar:
    strict, stat = read_as["strict"], tar.stat()
    shard = Shard(name, sha256_file(tar), stat.st_size, 0, stat.st_mtime_ns)
    scanned = ScannedTar(read_as, shard)
    with open(tar, "rb") as file:
        for key, members, repeated in tar_samples(tar):
            scanned.found += 1
            extension = video_extension(members)
            if extension is None:
                scanned.without_video.append(key)
                continue
            content = {
                member: os.pread(file.fileno(), size, offset)
                for member, (offset, size) in members.items()
                if member in (extension, "cls", "json")
            }
            try:
                label, class_name = find_label(content)
                if repeated:
                    raise ValueError(f"member {repeated[0]} occurs twice")
                info = probe(content[extension], strict=strict)
                if strict and read_as["decode"] == "all":
                    size = check_frames(content[extension], strict=True)
                    if size != (info.frames, info.height, info.width):
                        raise ValueError(
                            f"{info.frames} frames of {info.height}x{info.width} by its packets, "
                            f"but decoding gives {size[0]} of {size[1]}x{size[2]}"
                        )
            except Exception as error:  # noqa: BLE001 - whatever a sample raises is its failure
                scanned.failures.append(Failure(key, str(error) or type(error).__name__))
                continue
            places = {
                plain_extension(member) if member == extension else member: members[member]
                for member in content
            }
            size = (info.frames, info.height, info.width)
            scanned.entries.append(Entry(key, None, *size, info.fps, places))
            scanned.labels.append(label)
            scanned.class_names.append(class_name)
    scanned.shard, scanned.cut = replace(shard, count=len(scanned.entries)), not has_end(tar)
    return scanned


def _conclude(
    scanned: list[ScannedTar], folder: Path, target: Path, strict: bool, decode: str
) -> ExternalReport:
    """Write the index of all tars."""
    failures = [failure for each in scanned for failure in each.failures]
    full = [each for each in scanned if each.entries]
    if not full:
        reason = failures[0].reason if failures else "none of the samples holds a video"
        raise ValueError(f"{folder}: nothing to index: {reason}")
    keys = _unique_keys(full)
    labels, class_names = _number_labels(folder, full, keys)
    stored = [entry for each in full for entry in each.entries]
    entries = [
        replace(entry, key=key, label=label)
        for entry, key, label in zip(stored, keys, labels, strict=True)
    ]
    content_hash = write_index(
        target,
        class_names,
        {"made_by": "another tool", "strict_decoding": strict},
        [each.shard for each in full],
        entries,
        None if target.resolve() == folder.resolve() else str(folder.resolve()),
    )
    return ExternalReport(
        shards=len(scanned),
        found=sum(each.found for each in scanned),
        written=len(entries),
        unlabeled=labels.count(None),
        without_video=tuple(key for each in scanned for key in each.without_video),
        failures=tuple(failures),
        cut=tuple(each.shard.name for each in scanned if each.cut),
        unchecked=len(entries) if strict and decode == "first" else 0,
        hash=content_hash,
    )


def _unique_keys(scanned: list[ScannedTar]) -> list[str]:
    """The keys of all entries, with the tar's name or a number where they occur more than once."""
    counts = Counter(entry.key for each in scanned for entry in each.entries)
    repeated = len(counts) < counts.total()
    keys, seen = [], Counter()
    for each in scanned:
        prefix = each.shard.name.removesuffix(".tar") + "/" if repeated else ""
        for entry in each.entries:
            key = prefix + entry.key
            seen[key] += 1
            keys.append(key + (f"#{seen[key]}" if seen[key] > 1 else ""))
    return keys


def _number_labels(
    folder: Path, scanned: list[ScannedTar], keys: list[str]
) -> tuple[list[int | None], list[str]]:
    """The labels of all entries as numbers, and the class names."""
    labels = [label for each in scanned for label in each.labels]
    named = {label for label in labels if isinstance(label, str)}
    if named and not all(label is None or isinstance(label, str) for label in labels):
        raise ValueError(f"{folder}: some labels are numbers, others names")
    number_of = {name: number for number, name in enumerate(sorted(named))}
    numbers = [number_of[label] if isinstance(label, str) else label for label in labels]
    names = {number: name for name, number in number_of.items()}
    given = [name for each in scanned for name in each.class_names]
    for number, name, key in zip(numbers, given, keys, strict=True):
        if number is None or name is None:
            continue
        if names.setdefault(number, name) != name:
            raise ValueError(
                f"{folder}: label {number} is {names[number]!r} in one sample and {name!r} in {key}"
            )
    top = max((number for number in numbers if number is not None), default=-1)
    return numbers, [names.get(number, str(number)) for number in range(top + 1)]
