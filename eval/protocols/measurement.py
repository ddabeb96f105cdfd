"""What the commands that measure have in common: options, giving out a result, the file of results.

The file of results (`.jsonl`) adds up: each line holds the whole result of a command (`kind`,
`name`, `value`, `std`, `protocol` with the hashes of weights and real clips, ...) and where it
comes from: `schema`, `label`, `command`, `versions`, `date`.
"""

import hashlib
import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from accelerate import Accelerator
from annotated_types import Ge
from filelock import FileLock

from common.config import BatchSize, Config, Device, Pixels, Workers
from common.files import atomic_path, check_output_file, write_json
from eval.clips.source import ClipSource
from eval.features.feature_cache import Extraction
from eval.features.statistics import Statistics

SCHEMA = 1
KINDS = ("fvd", "is", "reconstruction")
LEFT_OUT = ("published", "clips")
"""What can be made anew, or is about single clips."""
PACKAGES = ("torch", "numpy", "scipy", "av")
RATE_TOLERANCE = 0.1  # relative; containers round frame rates


@dataclass(frozen=True, kw_only=True)
class Measurement(Config):
    """Size and choice of the clips, and how the work is done."""

    height: Pixels | None = None
    """Resize and center-crop all clips to this height first, pixels; null keeps their size. Needed
    where real videos are larger than generated ones."""
    width: Pixels | None = None
    """See height."""
    seed: int = 0
    """Chooses videos, and random offsets in them."""
    on_error: Literal["stop", "skip"] = "stop"
    """A video that cannot be read ends the run, or is left out, counted and named in the result."""
    batch_size: BatchSize = 8
    """Clips per forward pass."""
    workers: Workers = 0
    """Processes that decode ahead."""
    device: Device = "auto"
    """auto (each process its own GPU, where there is one), cpu, cuda, cuda:1, ..."""

    results: str | None = None
    """File (.jsonl) that the result is added to, with command and versions, for report.py; results
    of all commands may go into one. null: none."""
    label: str | None = None
    """Names the result's row there; null: the folder that was measured."""


@dataclass(frozen=True, kw_only=True)
class GenerationScore(Measurement):
    """What the scores of generated clips have in common."""

    noise_fake: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of Gaussian noise added to generated clips, in [-1, 1] units: how far does
    it move the score?"""
    fake_is_real: bool = False
    """`fake` holds real videos, such as held-out ones, which need not be alike: their score is what
    a perfect generator would get."""
    allow_rate_mismatch: bool = False
    """Accept frame rates over strides that differ between the sides."""
    feature_cache: str | None = None
    """Folder that keeps what the network gives for the next run; null keeps none."""
    out: str | None = None
    """JSON file for the result; null prints it."""

    def extraction(self, accelerator: Accelerator) -> Extraction:
        """How features are computed, on this process's device."""
        return Extraction(
            batch_size=self.batch_size,
            device=accelerator.device if self.device == "auto" else self.device,
            workers=self.workers,
            cache=self.feature_cache,
        )


def check_out(config: Measurement, *outs: str | None) -> None:
    """Refuse a path that nothing can be written to, before anything is measured.

    Args:
        config: of the command.
        outs: files to be written besides `results`.

    Raises:
        ValueError: one of them is a folder, or lies below a file; or `results` holds other things.
    """
    for out in outs:
        check_output_file("out", out)
    check_output_file("results", config.results, suffix=".jsonl")
    if config.results is None:
        return
    if Path(config.results).suffix != ".jsonl":
        raise ValueError(f"results={config.results}: must end in .jsonl")
    if Path(config.results).exists():
        read_results(config.results)


def check_rates(real: ClipSource | Statistics, fake: ClipSource) -> None:
    """Refuse (`ValueError`) sets whose frames lie differently far apart in time, or may do so."""
    if real.rate is None or fake.rate is None:
        folder = real.folder if real.rate is None else fake.folder
        what = "statistics of others" if folder.suffix == ".pkl" else "folders of frames"
        raise ValueError(
            f"{folder}: {what} have no frame rate, so the motion cannot be checked. "
            "Make sure that the strides fit (real clips at the training stride), then allow a "
            "rate mismatch."
        )
    if abs(real.rate / fake.rate - 1) > RATE_TOLERANCE:
        raise ValueError(
            f"real clips run at {real.rate:.4g} frames/s (stride {real.protocol.stride}), "
            f"generated ones at {fake.rate:.4g} (stride {fake.protocol.stride}): their motion "
            "cannot match. Set the strides (real clips at the training stride), or allow the "
            "mismatch if the files' frame rates mean nothing."
        )


def write_result(
    config: GenerationScore, result: Mapping[str, Any], text: str, measured: str
) -> None:
    """Write the result as JSON to `config.out` and `text` to stdout; without `out`, the JSON to
    stdout and `text` to stderr, so that stdout stays JSON. Add it to `config.results`, too.

    Args:
        measured: the folder that was measured, which is the result's label by default.
    """
    if config.out is not None:
        write_json(config.out, result)
        sys.stdout.write(text + "\n")
    else:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        sys.stderr.write(text + "\n")
    add_result(config, result, measured)


def add_result(config: Measurement, result: Mapping[str, Any], measured: str) -> None:
    """Add a result to `config.results`, where that is given, and say so on stderr."""
    if config.results is None:
        return
    label = config.label or measured
    added = append_result(config.results, result, label)
    what = "added" if added else "holds already"
    sys.stderr.write(f"{config.results}: {what} {label}\n")


def append_result(path: str | Path, result: Mapping[str, Any], label: str) -> bool:
    """Add a result to the file, unless it is there already.

    The file is locked meanwhile and replaced as a whole, so that several commands may write to it
    and a killed one leaves it as it was.

    Args:
        path: `.jsonl`; made if it is missing.
        result: what a command found, ready for JSON.
        label: names its row in tables.

    Returns:
        Whether it was added: the same value of the same clips by the same protocol is added once.

    Raises:
        ValueError: the file holds something else.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": SCHEMA,
        "label": label,
        **{name: value for name, value in result.items() if name not in LEFT_OUT},
        "command": shlex.join(["python", *sys.argv]),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with FileLock(path.with_name(f".{path.name}.lock")):
        before = read_results(path) if path.exists() else []
        if _identity(record) in map(_identity, before):
            return False
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(each, allow_nan=False) + "\n" for each in (*before, record))
    return True


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file of `append_result`.

    Raises:
        ValueError: no such file, or a line that is not such a record; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file of results")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not valid JSON ({error})") from None
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != SCHEMA:
            raise ValueError(f"{where}: schema {schema}, but this version reads {SCHEMA}")
        if record.get("kind") not in KINDS:
            raise ValueError(f"{where}: kind {record.get('kind')!r} is not one of {KINDS}")
        if missing := {"label", "protocol", "versions"} - record.keys():
            raise ValueError(f"{where}: has no {min(missing)}")
        records.append(record)
    return records


def _identity(record: Mapping[str, Any]) -> str:
    """Hash of what makes two results the same."""
    names = ("kind", "label", "name", "value", "std", "metrics", "protocol")
    fake = record.get("fake") or {}
    parts = [{name: record.get(name) for name in names}, fake.get("content"), record.get("runs")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
