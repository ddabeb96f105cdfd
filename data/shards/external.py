"""An index for webdataset tars that other tools wrote, which are read but never changed.

    index_foreign("their/shards")              # writes their/shards/index.json
    index_foreign("their/shards", "my/index")  # where their folder cannot be written

Each tar is read once: its headers, its checksum, and every video, which is decoded. What was found
in a tar is kept in `index.parts`, so a run that was stopped goes on, and a later one looks only at
tars that changed.
"""

import os
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from common.files import read_json, sha256_file, write_json
from data.shards.index import Shard, write_index
from data.shards.pool import map_ordered
from data.shards.tar_entries import (
    find_label,
    has_end,
    plain_extension,
    tar_samples,
    video_extension,
)
from data.video.probe import check_frames, probe

PARTS = "index.parts"
VERSION = 2  # of what is kept of a tar
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class ForeignReport:
    """What became of the samples of the tars."""

    shards: int
    """Tars."""
    found: int
    """Samples in them."""
    written: int
    """Videos in the index."""
    unlabeled: int
    """Videos of these without a class."""
    without_video: tuple[str, ...]
    """Keys of samples that hold no video."""
    failures: tuple[dict[str, str], ...]
    """Key and reason of each video that cannot be decoded."""
    cut: tuple[str, ...]
    """Tars without the zeros that end one: cut between members, or so written."""
    unchecked: int
    """Videos in the index of which only the first frame was decoded."""
    hash: str
    """Content hash, as in the index."""


def index_foreign(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    strict: bool = True,
    on_error: Literal["stop", "skip"] = "stop",
    decode: Literal["all", "first"] = "all",
    workers: int = 0,
    progress: bool = True,
) -> ForeignReport:
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
        progress: show a bar.

    Raises:
        ValueError: no tars, a broken or compressed one, labels that contradict each other, a
            folder of our own shards, a bad video under `on_error="stop"`, or nothing to index.
    """
    folder = Path(folder)
    target = Path(out) if out is not None else folder
    tars = _tars(folder)
    if (folder / "packing.json").exists():
        raise ValueError(f"{folder}: these shards are our own. Run scripts/make_shards.py instead.")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise ValueError(f"{target}: cannot be written. Give another folder for the index: out.")
    scan = partial(
        _part,
        folder=folder,
        parts=target / PARTS,
        read_as={"version": VERSION, "strict": strict, "decode": decode},
        stop=on_error == "stop",
    )
    results = map_ordered(scan, tars, workers)
    bar = tqdm(results, total=len(tars), unit="tar", desc="indexing", disable=not progress)
    return _conclude(list(bar), folder, target, strict, decode)


def _tars(folder: Path) -> list[Path]:
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


def _part(
    tar: Path, *, folder: Path, parts: Path, read_as: dict[str, Any], stop: bool
) -> dict[str, Any]:
    """What is in one tar; from an earlier run if the tar is the same."""
    name = tar.relative_to(folder).as_posix()
    path = parts / f"{name.replace('/', '__')}.json"
    stat = tar.stat()
    old = read_json(path) if path.exists() else None
    if old is not None and (old.get("read_as"), old["shard"]["bytes"]) == (read_as, stat.st_size):
        if old["shard"]["mtime_ns"] == stat.st_mtime_ns:
            return _checked(old, tar, stop)
        if old["shard"]["sha256"] == sha256_file(tar):
            old["shard"]["mtime_ns"] = stat.st_mtime_ns
            write_json(path, old)
            return _checked(old, tar, stop)
    part = _scan(tar, read_as["strict"], read_as["decode"])
    shard = Shard(name, sha256_file(tar), stat.st_size, len(part["samples"]), stat.st_mtime_ns)
    part = {"read_as": read_as, "shard": asdict(shard), **part}
    _checked(part, tar, stop)
    write_json(path, part)
    return part


def _checked(part: dict[str, Any], tar: Path, stop: bool) -> dict[str, Any]:
    if stop and part["failures"]:
        failure = part["failures"][0]
        raise ValueError(
            f"{tar}: {failure['key']}: {failure['reason']}. Leave out such videos with "
            "on_error=skip."
        )
    if stop and part["cut"]:
        raise ValueError(
            f"{tar}: has no end: it was cut after a member, or its writer left the end out. Copy "
            "it again, or take the samples that it has with on_error=skip."
        )
    return part


def _scan(tar: Path, strict: bool, decode: str) -> dict[str, Any]:
    samples, failures, without = [], [], []
    found = 0
    with open(tar, "rb") as file:
        for key, members, repeated in tar_samples(tar):
            found += 1
            extension = video_extension(members)
            if extension is None:
                without.append(key)
                continue
            content = {
                name: _read(file.fileno(), *place)
                for name, place in members.items()
                if name in (extension, "cls", "json")
            }
            try:
                label, class_name = find_label(content)
                if repeated:
                    raise ValueError(f"member {repeated[0]} occurs twice")
                info = probe(content[extension], strict=strict)
                if strict and decode == "all":
                    size = check_frames(content[extension], strict=True)
                    if size != (info.frames, info.height, info.width):
                        raise ValueError(
                            f"{info.frames} frames of {info.height}x{info.width} by its packets, "
                            f"but decoding gives {size[0]} of {size[1]}x{size[2]}"
                        )
            except Exception as error:  # noqa: BLE001 - whatever a sample raises is its failure
                failures.append({"key": key, "reason": str(error) or type(error).__name__})
                continue
            samples.append(
                {
                    "key": key,
                    "label": label,
                    "class_name": class_name,
                    "frames": info.frames,
                    "height": info.height,
                    "width": info.width,
                    "fps": info.fps,
                    "members": {
                        plain_extension(name) if name == extension else name: place
                        for name, place in members.items()
                        if name in content
                    },
                }
            )
    return {
        "found": found,
        "samples": samples,
        "failures": failures,
        "without_video": without,
        "cut": not has_end(tar),
    }


def _read(descriptor: int, offset: int, size: int) -> bytes:
    return os.pread(descriptor, size, offset)


def _conclude(
    parts: list[dict[str, Any]], folder: Path, target: Path, strict: bool, decode: str
) -> ForeignReport:
    failures = [failure for part in parts for failure in part["failures"]]
    full = [part for part in parts if part["samples"]]
    if not full:
        reason = failures[0]["reason"] if failures else "none of the samples holds a video"
        raise ValueError(f"{folder}: nothing to index: {reason}")
    samples = _numbered(full)
    class_names = _name_classes(folder, samples)
    content_hash = write_index(
        target,
        class_names,
        {"made_by": "another tool", "strict_decoding": strict},
        [part["shard"] for part in full],
        samples,
        None if target.resolve() == folder.resolve() else str(folder.resolve()),
    )
    return ForeignReport(
        shards=len(parts),
        found=sum(part["found"] for part in parts),
        written=len(samples),
        unlabeled=sum(sample["label"] is None for sample in samples),
        without_video=tuple(key for part in parts for key in part["without_video"]),
        failures=tuple(failures),
        cut=tuple(part["shard"]["name"] for part in parts if part["cut"]),
        unchecked=len(samples) if strict and decode == "first" else 0,
        hash=content_hash,
    )


def _numbered(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples of all tars, with the tar's number and a key that no other has."""
    keys = Counter(sample["key"] for part in parts for sample in part["samples"])
    repeated = len(keys) < sum(keys.values())
    samples, seen = [], Counter()
    for number, part in enumerate(parts):
        before = part["shard"]["name"].removesuffix(".tar") + "/" if repeated else ""
        for sample in part["samples"]:
            key = before + sample["key"]
            seen[key] += 1
            after = f"#{seen[key]}" if seen[key] > 1 else ""
            samples.append({**sample, "shard": number, "key": key + after})
    return samples


def _name_classes(folder: Path, samples: list[dict[str, Any]]) -> list[str]:
    """Turn labels to numbers, in place; returns the names."""
    labels = {sample["label"] for sample in samples} - {None}
    names: dict[int, str] = {}
    if any(isinstance(label, str) for label in labels):
        if not all(isinstance(label, str) for label in labels):
            raise ValueError(f"{folder}: some labels are numbers, others names")
        numbers = {name: number for number, name in enumerate(sorted(labels))}
        names = {number: name for name, number in numbers.items()}
        for sample in samples:
            sample["label"] = None if sample["label"] is None else numbers[sample["label"]]
    for sample in samples:
        label, name = sample["label"], sample.pop("class_name")
        if label is None or name is None:
            continue
        if names.setdefault(label, name) != name:
            raise ValueError(
                f"{folder}: label {label} is {names[label]!r} in one sample and {name!r} in "
                f"{sample['key']}"
            )
    top = max((sample["label"] for sample in samples if sample["label"] is not None), default=-1)
    return [names.get(label, str(label)) for label in range(top + 1)]
