"""A run's folder: its config, log, tracker, checkpoints and samples.

runs/name/config.yaml            the whole config; a rerun must agree with it
          log.jsonl              one line per logged step
          tensorboard/
          checkpoints/step-N/    model and EMA (safetensors), optimiser, state.json
          samples/
          export/                the averaged weights, ready for from_pretrained
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from engine.compare import differences
from engine.files import atomic_path, full_disk_is_oserror, read_json, write_json


class RunFolder:
    """The folder of one run; the main process writes what is shared."""

    def __init__(self, folder: str | Path, accelerator: Accelerator):
        self.path = Path(folder)
        self.accelerator = accelerator
        self.config: dict[str, Any] = {}

    def claim(self, config: Any, free: frozenset[str]) -> None:
        """Record the config, or check that the recorded one is the same.

        Args:
            config: a dataclass.
            free: names of fields, at any depth, that a continuation may change.
        Raises:
            ValueError: the run was started with another config; the differences are shown.
        """
        # through JSON, so that tuples compare as the lists that a file gives back
        wanted = self.config = {
            "command": type(config).__name__,
            **json.loads(json.dumps(asdict(config))),
        }
        file = self.path / "config.yaml"
        if file.exists():
            found = yaml.safe_load(file.read_text())
            if changes := differences(found, wanted, free):
                raise ValueError(
                    f"{self.path}: was started with another config: {'; '.join(changes)}. "
                    "Use the same values to resume it, or another folder."
                )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with atomic_path(file) as temporary:
                temporary.write_text(yaml.safe_dump(wanted, sort_keys=False))
        self.accelerator.wait_for_everyone()

    def latest(self) -> Path | None:
        """The checkpoint with the most steps, if any."""
        states = (self.path / "checkpoints").glob("step-*/state.json")
        return max(
            (s.parent for s in states),
            key=lambda c: read_json(c / "state.json")["step"],
            default=None,
        )

    def save(self, step: int, ema: nn.Module, keep: int) -> None:
        """Write a checkpoint, rename it when complete, and delete all but the last `keep`."""
        final = self.path / "checkpoints" / f"step-{step:08d}"
        temporary = final.with_name(f".{final.name}.tmp")
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            with full_disk_is_oserror(temporary):
                self.accelerator.save_state(str(temporary))
                if main:
                    weights = {name: value.contiguous() for name, value in ema.state_dict().items()}
                    save_file(weights, temporary / "ema.safetensors")
                    write_json(temporary / "state.json", {"step": step, "config": self.config})
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self.accelerator.wait_for_everyone()
        if main:
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            old = sorted(final.parent.glob("step-*/state.json"), key=lambda s: read_json(s)["step"])
            for state_file in old[:-keep]:
                shutil.rmtree(state_file.parent)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path, ema: nn.Module) -> dict[str, Any]:
        """Restore the prepared model, the optimiser and the EMA; return the saved state."""
        self.accelerator.load_state(str(checkpoint))
        ema.load_state_dict(load_file(checkpoint / "ema.safetensors"))
        return read_json(checkpoint / "state.json")

    def start_log(self, step: int) -> None:
        """Open the trackers; forget log lines past `step`, which a resumed run will write again."""
        if not self.accelerator.is_main_process:
            return
        _forget_after(self.path / "log.jsonl", step)
        options = {"tensorboard": {"purge_step": step}}
        self.accelerator.init_trackers("tensorboard", init_kwargs=options)

    def write_log(self, step: int, values: dict[str, float]) -> None:
        """Append one line to log.jsonl and to the trackers."""
        if not self.accelerator.is_main_process:
            return
        with open(self.path / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(values, step=step)


def read_log(folder: str | Path) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl."""
    lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _forget_after(file: Path, step: int) -> None:
    if not file.exists():
        return
    lines = [line for line in file.read_text().splitlines() if json.loads(line)["step"] <= step]
    with atomic_path(file) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))
