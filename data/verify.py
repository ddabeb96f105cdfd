"""Checks of stored data from end to end: checksums, structure, decodability, counts.

Loading checks that files are there and have their size; this reads every byte.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from common.files import sha256_file
from common.pool import map_ordered
from data.latents.dataset import MANIFEST, read_manifest
from data.latents.shards import merge_sums, shard_sums
from data.shards.index import INDEX, ShardIndex
from data.shards.tars import tar_members
from data.video.decode import read_frames
from data.video.probe import check_frames, probe

Depth = Literal["none", "ends", "all"]
VIDEOS_PER_TASK = 16

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong."""

    file: str
    """Where."""
    reason: str
    """What."""
    key: str | None = None
    """Which video or latent, where it is one."""


@dataclass(frozen=True)
class Verification:
    """What was checked and found."""

    kind: Literal["shards", "latents"]
    """What the folder holds."""
    folder: str
    """Which folder."""
    files: int
    """Shards that belong to it."""
    items: int
    """Videos or latents that belong to it."""
    bytes: int
    """Size of all shards."""
    checked: str
    """What was done."""
    problems: tuple[Problem, ...]
    """What is wrong; empty if nothing is."""


def verify(
    folder: str | Path, *, decode: Depth = "all", workers: int = 0, progress: bool = True
) -> Verification:
    """Check a folder of shards or a latent cache, whichever it is.

    Shards: size, sha256, that their members are where the index says, and the videos. A video must
    decode, strictly if it was packed so, have the frames and size of the index, and give the same
    frames when they are sought as in sequence. Remote shards that a local index points to are
    downloaded into the default cache. A cache: complete, each shard's size, sha256, shapes and
    values, and the statistics.

    Args:
        decode: of shards: decode every frame of every video, the first and the last, or nothing.
        workers: processes; 0 works in this one.
        progress: show bars.

    Raises:
        ValueError: neither is there, or the index or manifest itself is unreadable.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        return _verify_shards(folder, decode, workers, progress)
    if (folder / MANIFEST).exists():
        return _verify_latents(folder, workers, progress)
    raise ValueError(
        f"{folder}: neither {INDEX} of shards nor {MANIFEST} of a latent cache there; each is "
        "written last, when all else is complete"
    )


def _verify_shards(folder: Path, decode: Depth, workers: int, progress: bool) -> Verification:
    index = ShardIndex.load(folder, check=False)
    tars = range(len(index.shards))
    found = _check_all(partial(_check_tar, index), tars, workers, "checksums", "shard", progress)
    problems = [problem for of_tar in found for problem in of_tar]
    missing = frozenset(p.file for p in problems if not Path(p.file).exists())
    problems += _repeated(folder / INDEX, map(index.entries.key, range(len(index))))
    if decode != "none":
        rows, unit = range(len(index)), f"{VIDEOS_PER_TASK} videos"
        ranges = [rows[i : i + VIDEOS_PER_TASK] for i in range(0, len(index), VIDEOS_PER_TASK)]
        check = partial(_check_videos, index, decode, missing)
        for of_range in _check_all(check, ranges, workers, "videos", unit, progress):
            problems += of_range
    done = {"all": "every frame", "ends": "the first and last frame", "none": "no frame"}[decode]
    return Verification(
        kind="shards",
        folder=str(folder),
        files=len(index.shards),
        items=len(index),
        bytes=sum(shard.bytes for shard in index.shards),
        checked=f"sha256 of each shard, place of each member, {done} of each video decoded",
        problems=tuple(problems),
    )


def _verify_latents(folder: Path, workers: int, progress: bool) -> Verification:
    manifest, path = read_manifest(folder), folder / MANIFEST
    shards = manifest["shards"]
    check = partial(_check_latents, folder, manifest)
    found = _check_all(check, shards, workers, "latents", "shard", progress)
    problems = [problem for of_shard, _, _ in found for problem in of_shard]
    problems += _repeated(path, (key for _, keys, _ in found for key in keys))
    if not problems:
        items, total = sum(len(keys) for _, keys, _ in found), manifest["totals"]["items"]
        if items != total:
            problems.append(Problem(str(path), f"{total} items in the totals, {items}"))
        statistics = merge_sums([sums for _, _, sums in found])
        for name in ("mean", "std"):
            stated = manifest["statistics"][name]
            if not np.allclose(statistics[name], stated, rtol=1e-6, atol=1e-9):
                problems.append(Problem(str(path), f"{name} is not that of the latents"))
    return Verification(
        kind="latents",
        folder=str(folder),
        files=len(shards),
        items=sum(shard["count"] for shard in shards),
        bytes=sum(shard["bytes"] for shard in shards),
        checked="sha256 of each shard, shape and values of each latent, totals, statistics",
        problems=tuple(problems),
    )


def _check_all(
    check: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    name: str,
    unit: str,
    progress: bool,
) -> list[Result]:
    results = map_ordered(check, tasks, workers)
    return list(tqdm(results, total=len(tasks), unit=unit, desc=name, disable=not progress))


def _repeated(file: Path, keys: Iterable[str]) -> list[Problem]:
    counts = Counter(keys)
    return [Problem(str(file), "the key occurs twice", key) for key in counts if counts[key] > 1]


def _check_tar(index: ShardIndex, number: int) -> list[Problem]:
    if index.is_remote:  # its cache compares size and sha256 of what is downloaded
        try:
            index.read(int(np.flatnonzero(index.shard_numbers == number)[0]))
        except ValueError as error:
            return [Problem(index.path(number), str(error))]
        return []
    shard, path = index.shards[number], Path(index.path(number))
    if not path.exists():
        return [Problem(str(path), "is missing")]
    problems = []
    if path.stat().st_size != shard.bytes:
        problems.append(f"has {path.stat().st_size} bytes, the index says {shard.bytes}")
    elif sha256_file(path) != shard.sha256:
        problems.append("its sha256 is not the one in the index")
    try:
        there = {place for _, place in tar_members(path)}
    except ValueError as error:
        return [Problem(str(path), reason) for reason in (*problems, str(error))]
    lost = [
        Problem(str(path), f"no member {extension} where the index says", entry.key)
        for entry in (index.entries[int(i)] for i in np.flatnonzero(index.shard_numbers == number))
        for extension, place in entry.members.items()
        if tuple(place) not in there
    ]
    return [Problem(str(path), reason) for reason in problems] + lost


def _check_videos(
    index: ShardIndex, decode: Depth, missing: frozenset[str], rows: range
) -> list[Problem]:
    problems = []
    strict = bool(index.config.get("strict_decoding", True))
    for row in rows:
        entry = index.entries[row]
        path = index.path_of(row)
        if path in missing:
            continue
        try:
            video = index.read(row)
            if decode == "all":
                found = check_frames(video, strict=strict)
            else:
                info = probe(video, strict=strict)
                found = (info.frames, info.height, info.width)
                for number in {0, info.frames - 1}:
                    read_frames(video, [number], strict=strict, frames=info.frames)
            said = (entry.frames, entry.height, entry.width)
            if found != said:
                reason = f"{'x'.join(map(str, found))}, the index says {'x'.join(map(str, said))}"
                problems.append(Problem(path, reason, entry.key))
        except ValueError as error:
            problems.append(Problem(path, str(error), entry.key))
    return problems


def _check_latents(
    folder: Path, manifest: dict[str, Any], shard: dict[str, Any]
) -> tuple[list[Problem], list[str], dict[str, Any]]:
    """Problems, keys and sums of one shard."""
    path = folder / shard["file"]

    def problem(reason: str, key: str | None = None) -> Problem:
        return Problem(str(path), reason, key)

    if not path.exists():
        return [problem("is missing")], [], {}
    if path.stat().st_size != shard["bytes"]:
        return [problem(f"{path.stat().st_size} bytes, the manifest says {shard['bytes']}")], [], {}
    problems = []
    if sha256_file(path) != shard["sha256"]:
        problems.append(problem("its sha256 is not the one in the manifest"))
    try:
        with safe_open(path, framework="np") as file:
            keys: list[str] = json.loads(file.metadata()["keys"])
            moments, labels = file.get_tensor("moments"), file.get_tensor("label")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        return [*problems, problem(f"unreadable ({error})")], [], {}
    c, *rest = manifest["latent_shape"]
    shape = (shard["count"], 2 * c, *rest)
    if moments.shape != shape or len(keys) != shard["count"]:
        reason = f"moments {moments.shape} and {len(keys)} keys, the manifest says {shape}"
        return [*problems, problem(reason)], keys, {}
    finite = np.isfinite(moments).reshape(len(keys), -1).all(axis=1)
    problems += [problem("is not finite", keys[row]) for row in np.flatnonzero(~finite)]
    classes = len(manifest["class_names"])
    wrong = np.flatnonzero((labels < -1) | (labels >= classes))
    problems += [problem(f"label {labels[row]} of {classes} classes", keys[row]) for row in wrong]
    return problems, keys, shard_sums(moments)
