"""What the commands that measure have in common: their options, and how a result is given out."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from accelerate import Accelerator
from annotated_types import Ge

from common.config import Config, Device, Workers
from common.files import write_json
from eval.features.feature_cache import Extraction


@dataclass(frozen=True, kw_only=True)
class Measurement(Config):
    """Size and choice of the clips, and how the work is done."""

    height: Annotated[int, Ge(1)] | None = None
    """Resize and center-crop all clips to this height first, pixels; null keeps their size. Needed
    where real videos are larger than generated ones."""
    width: Annotated[int, Ge(1)] | None = None
    """See height."""
    seed: int = 0
    """Chooses videos, and random offsets in them."""
    on_error: Literal["stop", "skip"] = "stop"
    """A video that cannot be read ends the run, or is left out, counted and named in the result."""
    batch_size: Annotated[int, Ge(1)] = 8
    """Clips per forward pass."""
    workers: Workers = 0
    """Processes that decode ahead."""
    device: Device = "auto"
    """auto (each process its own GPU, where there is one), cpu, cuda, cuda:1, ..."""

    def extraction(self, accelerator: Accelerator, cache: str | None = None) -> Extraction:
        """How features are computed, on this process's device."""
        return Extraction(
            batch_size=self.batch_size,
            device=accelerator.device if self.device == "auto" else self.device,
            workers=self.workers,
            cache=cache,
        )


def check_out(*outs: str | None) -> None:
    """Refuse a path that nothing can be written to, before anything is measured.

    Raises:
        ValueError: one of them is a folder, or lies below a file.
    """
    for out in filter(None, outs):
        path = Path(out)
        if path.is_dir():
            raise ValueError(f"out={out}: is a folder. Name a file, such as {path / 'result.json'}")
        if parents := [parent for parent in path.parents if parent.is_file()]:
            raise ValueError(f"out={out}: {parents[0]} is a file, so no folder can be made there")


def give_out(result: Mapping[str, Any], text: str, out: str | None) -> None:
    """Write the result as JSON to `out` and `text` to stdout; without `out`, the JSON to stdout and
    `text` to stderr, so that stdout stays JSON."""
    if out is not None:
        write_json(out, result)
    else:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    stream = sys.stderr if out is None else sys.stdout
    stream.write(text + "\n")
