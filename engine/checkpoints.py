"""Which checkpoints of a run are whole, and which stay.

A checkpoint's state.json lists every other file with its size and sha256, so that one which a crash
or a full disk has damaged is told from a whole one before anything is read from it.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.files import read_json, sha256_file

log = logging.getLogger(__name__)

STATE = "state.json"
HASHERS = 4
"""Threads that read a checkpoint's files."""


def list_files(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file, for state.json, which is not there yet; not of README.md,
    which people may edit."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != "README.md")
    with ThreadPoolExecutor(HASHERS) as pool:
        hashes = list(pool.map(sha256_file, files))
    return {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(files, hashes, strict=True)
    }


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        files: dict[str, dict[str, Any]] = read_json(checkpoint / STATE)["files"]
    except ValueError as error:
        return str(error)
    except (KeyError, TypeError):
        return f"{STATE} does not list its files"
    for name, known in files.items():  # sizes first: they cost nothing
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != known["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {known['bytes']}"
    with ThreadPoolExecutor(HASHERS) as pool:
        hashes = pool.map(sha256_file, (checkpoint / name for name in files))
        for (name, known), sha256 in zip(files.items(), hashes, strict=True):
            if sha256 != known["sha256"]:
                return f"{name} does not have the sha256 it was written with"
    return None


def newest_whole(folder: Path) -> tuple[Path | None, list[Path]]:
    """The whole checkpoint with the most steps, if there are any, and the damaged later ones.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        damage = find_damage(checkpoint)
        if damage is None:
            for other, why in damaged.items():
                log.warning("%s: damaged (%s); going on from %s", other, why, checkpoint.name)
            return checkpoint, list(damaged)
        damaged[checkpoint] = damage
    if damaged:
        reasons = "; ".join(f"{path.name}: {why}" for path, why in damaged.items())
        raise ValueError(
            f"{folder}: all checkpoints are damaged ({reasons}). Restore one from a copy, or "
            f"delete {folder} to train from the start."
        )
    return None, []


def kept(steps: list[int], keep: int, every: int | None) -> tuple[list[int], list[int]]:
    """Of checkpoints at ascending `steps`: those that stay, and those to delete."""
    stay = [s for s in steps if s in steps[-keep:] or (every is not None and s % every == 0)]
    return stay, [s for s in steps if s not in stay]
