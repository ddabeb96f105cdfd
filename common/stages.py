"""Stages of a longer command, each done once: a record tells with which settings and inputs."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import read_json, write_json
from common.measure import GIGABYTE
from common.output_folder import Input, describe_identity, identity_changes


def run_stage(
    record: Path,
    work: Callable[[], int],
    *,
    settings: Mapping[str, Any],
    inputs: Sequence[Path] = (),
) -> dict[str, Any]:
    """Do `work` unless `record` says that it was done with the same; returns the record.

    Args:
        record: JSON file, written when the work is done.
        work: returns its peak memory, bytes.
        settings: what decides the result besides `inputs`, for JSON.
        inputs: files that the result depends on, such as weights.

    Returns:
        `seconds` and `memory_gb` of the work, and what it was done with.

    Raises:
        ValueError: it was done with other settings or inputs, or an input is missing.
    """
    for path in inputs:
        if not path.is_file():
            raise ValueError(f"{path}: no such file; the stage before makes it")
    hashes = {str(path): Input.file(path) for path in inputs}
    if record.exists():
        found = read_json(record)
        if changes := identity_changes(found, settings, hashes):
            raise ValueError(
                f"{record}: was made with other settings or inputs: {'; '.join(changes)}. Use "
                "the same, choose another folder, or delete this file and what the stage made."
            )
        return found
    start = time.perf_counter()
    memory = work()
    cost = {
        "seconds": round(time.perf_counter() - start, 1),
        "memory_gb": round(memory / GIGABYTE, 3),
    }
    done = {**describe_identity(settings, hashes), **cost}
    write_json(record, done)
    return done
