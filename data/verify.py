"""Checks of stored data from end to end: checksums, structure, decodability, counts.

Loading checks that files are there and have their size; this reads every byte.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
from data.video.container import DecodeError
from data.video.decode import read_frames
from data.video.probe import check_frames, probe

Depth = Literal["none", "ends", "all"]
VIDEOS_PER_TASK = 16

Task = TypeVar("Task")


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

    def to_json(self) -> dict[str, Any]:
        """As written to a report."""
        return {**asdict(self), "ok": not self.problems}


def verify(
    folder: str | Path, *, decode: Depth = "all", workers: int = 0, progress: bool = True
) -> Verification:
    """Check a folder of shards or a latent cache, whichever it is.

    Args:
        decode: of shards: decode every frame of every video, the first and the last, or nothing.
        workers: processes; 0 works in this one.
        progress: show bars.

    Raises:
        ValueError: neither is there, or the index or manifest itself is unreadable.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        return verify_shards(folder, decode=decode, workers=workers, progress=progress)
    if (folder / MANIFEST).exists():
        return verify_latents(folder, workers=workers, progress=progress)
    raise ValueError(
        f"{folder}: neither {INDEX} of shards nor {MANIFEST} of a latent cache there; each is "
        "written last, when all else is complete"
    )


def verify_shards(
    folder: Path, *, decode: Depth = "all", workers: int = 0, progress: bool = True
) -> Verification:
    """Check shards: size, sha256, that their members are where the index says, and the videos.

    A video must decode, strictly if it was packed so, have the frames and size of the index, and
    give the same frames when they are sought as in sequence. Remote shards that a local index
    points to are downloaded into the default cache.
    """
    index = ShardIndex.load(folder, check=False)
    tars = range(len(index.shards))
    check = partial(_check_tar, index)
    problems = _all(check, tars, workers, "checksums", "shard", progress)
    broken = {problem.file for problem in problems}
    keys = Counter(index.entries.key(i) for i in range(len(index)))
    repeated = [key for key, count in keys.items() if count > 1]
    problems += [Problem(str(folder / INDEX), "the key occurs twice", key) for key in repeated]
    if decode != "none":
        ranges = [
            range(first, min(first + VIDEOS_PER_TASK, len(index)))
            for first in range(0, len(index), VIDEOS_PER_TASK)
        ]
        missing = frozenset(file for file in broken if not Path(file).exists())
        check_videos = partial(_check_videos, index, decode, missing)
        problems += _all(
            check_videos, ranges, workers, "videos", f"{VIDEOS_PER_TASK} videos", progress
        )
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


def verify_latents(folder: Path, *, workers: int = 0, progress: bool = True) -> Verification:
    """Check a latent cache: complete, each shard's size, sha256, shapes, values; the statistics."""
    manifest = read_manifest(folder)
    path = str(folder / MANIFEST)
    shards = manifest["shards"]
    check = partial(_check_latents, folder, manifest)
    results = map_ordered(check, shards, workers)
    bar = tqdm(results, total=len(shards), unit="shard", desc="latents", disable=not progress)
    found = list(bar)
    problems = [problem for result in found for problem in result[0]]
    keys = Counter(key for result in found for key in result[1])
    repeated = [key for key, count in keys.items() if count > 1]
    problems += [Problem(path, "the key occurs twice", key) for key in repeated]
    if not problems:
        problems += _check_statistics(path, manifest, [result[2] for result in found])
    return Verification(
        kind="latents",
        folder=str(folder),
        files=len(shards),
        items=sum(shard["count"] for shard in shards),
        bytes=sum(shard["bytes"] for shard in shards),
        checked="sha256 of each shard, shape and values of each latent, totals, statistics",
        problems=tuple(problems),
    )


def _all(
    check: Callable[[Task], list[Problem]],
    tasks: Sequence[Task],
    workers: int,
    name: str,
    unit: str,
    progress: bool,
) -> list[Problem]:
    results = map_ordered(check, tasks, workers)
    bar = tqdm(results, total=len(tasks), unit=unit, desc=name, disable=not progress)
    return [problem for problems in bar for problem in problems]


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
        except (DecodeError, ValueError) as error:
            problems.append(Problem(path, str(error), entry.key))
    return problems


def _check_latents(
    folder: Path, manifest: dict[str, Any], shard: dict[str, Any]
) -> tuple[list[Problem], list[str], dict[str, Any]]:
    """Problems, keys and sums of one shard."""
    path = folder / shard["file"]

    def bad(reason: str, key: str | None = None) -> Problem:
        return Problem(str(path), reason, key)

    if not path.exists():
        return [bad("is missing")], [], {}
    if path.stat().st_size != shard["bytes"]:
        return [bad(f"{path.stat().st_size} bytes, the manifest says {shard['bytes']}")], [], {}
    problems = []
    if sha256_file(path) != shard["sha256"]:
        problems.append(bad("its sha256 is not the one in the manifest"))
    try:
        with safe_open(path, framework="np") as file:
            keys: list[str] = json.loads(file.metadata()["keys"])
            moments, labels = file.get_tensor("moments"), file.get_tensor("label")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        return [*problems, bad(f"unreadable ({error})")], [], {}
    c, *rest = manifest["latent_shape"]
    shape = (shard["count"], 2 * c, *rest)
    if moments.shape != shape or len(keys) != shard["count"]:
        reason = f"moments {moments.shape} and {len(keys)} keys, the manifest says {shape}"
        return [*problems, bad(reason)], keys, {}
    finite = np.isfinite(moments).reshape(len(keys), -1).all(axis=1)
    problems += [bad("is not finite", keys[row]) for row in np.flatnonzero(~finite)]
    classes = len(manifest["class_names"])
    wrong = np.flatnonzero((labels < -1) | (labels >= classes))
    problems += [bad(f"label {labels[row]} of {classes} classes", keys[row]) for row in wrong]
    return problems, keys, shard_sums(moments)


def _check_statistics(
    path: str, manifest: dict[str, Any], sums: list[dict[str, Any]]
) -> list[Problem]:
    problems = []
    items = sum(shard["count"] for shard in manifest["shards"])
    if items != manifest["totals"]["items"]:
        problems.append(
            Problem(path, f"{manifest['totals']['items']} items in the totals, {items}")
        )
    found = merge_sums(sums)
    for name in ("mean", "std"):
        if not np.allclose(found[name], manifest["statistics"][name], rtol=1e-6, atol=1e-9):
            problems.append(Problem(path, f"{name} is not that of the latents"))
    return problems
