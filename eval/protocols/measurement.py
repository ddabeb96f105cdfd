"""What the commands that measure have in common: their options, and how a result is given out."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from accelerate import Accelerator

from common.config import BatchSize, Config, Device, Pixels, Workers
from common.files import check_output_file, write_json
from eval.features.feature_cache import Extraction
from eval.protocols.results_log import append_result, check_results


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

    def extraction(self, accelerator: Accelerator, cache: str | None = None) -> Extraction:
        """How features are computed, on this process's device."""
        return Extraction(
            batch_size=self.batch_size,
            device=accelerator.device if self.device == "auto" else self.device,
            workers=self.workers,
            cache=cache,
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
    check_results(config.results)


def give_out(
    config: Measurement, result: Mapping[str, Any], text: str, out: str | None, measured: str
) -> None:
    """Write the result as JSON to `out` and `text` to stdout; without `out`, the JSON to stdout and
    `text` to stderr, so that stdout stays JSON. Add it to `config.results`, too.

    Args:
        measured: the folder that was measured, which is the result's label by default.
    """
    if out is not None:
        write_json(out, result)
    else:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    stream = sys.stderr if out is None else sys.stdout
    stream.write(text + "\n")
    add_result(config, result, measured)


def add_result(config: Measurement, result: Mapping[str, Any], measured: str) -> None:
    """Add a result to `config.results`, where that is given, and say so on stderr."""
    if config.results is None:
        return
    label = config.label or measured
    added = append_result(config.results, result, label)
    what = "added" if added else "holds already"
    sys.stderr.write(f"{config.results}: {what} {label}\n")
