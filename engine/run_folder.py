"""A run's folder: its config, log, tracker, checkpoints and samples.

runs/name/identity.json          what a rerun must agree with: config, hashes of data and weights
          config.yaml            the whole config, for --config
          log.jsonl              one line per logged step
          tensorboard/
          checkpoints/step-N/    all that a rerun needs; its ema/ is ready for from_pretrained
          samples/
          export/                the averaged weights, ready for from_pretrained
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from accelerate import Accelerator
from accelerate.tracking import WandBTracker
from torch import nn

from common.config import Config, json_values
from common.files import full_disk_is_oserror, read_json, sync, sync_folder, write_json, write_text
from common.output_folder import (
    Input,
    check_identity,
    in_main_process,
    remove_temporary,
    write_identity,
)
from engine.checkpoints import STATE, kept, list_files, newest_whole
from engine.fsdp import load_weights

log = logging.getLogger(__name__)


class RunFolder:
    """The folder of one run; the main process writes what is shared."""

    def __init__(self, folder: str | Path, accelerator: Accelerator):
        self.path = Path(folder)
        self.accelerator = accelerator
        self.config: dict[str, Any] = {}
        self._identity: Callable[[], None] = lambda: None
        self._latest: tuple[Path | None, list[Path]] | None = None
        _keep_names(accelerator)

    def check(self, config: Config, inputs: Mapping[str, Input] | None = None) -> None:
        """Check that the folder is new or holds a run of the same; nothing is written.

        Args:
            config: what was asked for; fields marked MAY_CHANGE may differ.
            inputs: what the weights come from, by name.

        Raises:
            ValueError: the run was begun with something else; the differences are shown.
        """
        self._identity = partial(
            write_identity, self.path, config, inputs, self.accelerator, products=("checkpoints",)
        )
        check_identity(self.path, config, inputs, products=("checkpoints",))
        self.config = json_values(asdict(config))

    def write_identity(self) -> None:
        """Write the identity that `check` was given; remove what is damaged or half-written."""
        self.accelerator.wait_for_everyone()
        self._identity()
        if self.accelerator.is_main_process:
            for damaged in self._latest[1] if self._latest else ():
                shutil.rmtree(damaged)
            for folder in self.path.glob("*/"):
                remove_temporary(folder)
            write_text(self.path / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        self.accelerator.wait_for_everyone()

    def latest(self) -> Path | None:
        """The checkpoint to go on from: the whole one with the most steps, if any.

        Raises:
            ValueError: there are checkpoints, and all are damaged.
        """
        if self._latest is None:
            find = partial(newest_whole, self.path / "checkpoints")
            self._latest = in_main_process(find, self.accelerator)
        return self._latest[0]

    def save(
        self, state: dict[str, Any], export: Callable[[Path], None], keep: int, every: int | None
    ) -> None:
        """Write a checkpoint and rename it when it is complete; delete old ones.

        Args:
            state: of the run, for JSON, with its `step`.
            export: writes the averaged weights into a folder.
            keep, every: the last `keep` stay, and those at multiples of `every`.
        """
        final = self.path / "checkpoints" / f"step-{state['step']:08d}"
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
                    (temporary / "ema").mkdir()
                    export(temporary / "ema")
                self.accelerator.wait_for_everyone()
                if main:
                    state = {**state, "config": self.config, "files": list_files(temporary)}
                    write_json(temporary / STATE, state)
                    sync_folder(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if main:
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            sync(final.parent)  # before older ones go
            saved = {read_json(f)["step"]: f.parent for f in final.parent.glob(f"step-*/{STATE}")}
            for step in kept(sorted(saved), keep, every)[1]:
                shutil.rmtree(saved[step])
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path, ema: nn.Module) -> dict[str, Any]:
        """Restore what is prepared (modules, optimizers) and the EMA; return the saved state."""
        self.accelerator.load_state(str(checkpoint))
        load_weights(ema, checkpoint / "ema" / "model.safetensors")
        return read_json(checkpoint / STATE)

    def start_log(self, step: int, wandb: str | None = None) -> None:
        """Open the trackers; forget log lines past `step`, which a resumed run will write again."""
        if not self.accelerator.is_main_process:
            return
        _forget_after(self.path / "log.jsonl", step)
        options = {"tensorboard": {"purge_step": step}}
        self.accelerator.init_trackers("tensorboard", init_kwargs=options)
        if wandb is not None:
            name = self.path / "wandb-run"  # a resumed run goes on in the same curves
            if not name.exists():
                write_text(name, uuid4().hex[:12])
            tracker = WandBTracker(
                wandb, id=name.read_text(), name=self.path.name, dir=self.path, resume="allow"
            )
            tracker.start()
            tracker.store_init_configuration(self.config)
            self.accelerator.trackers.append(tracker)

    def write_log(self, step: int, values: dict[str, float]) -> None:
        """Append one line to log.jsonl and to the trackers."""
        if not self.accelerator.is_main_process:
            return
        with open(self.path / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(values, step=step)


def read_log(folder: str | Path) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl; a last one that was cut off by a crash is left out.

    Raises:
        ValueError: another line is damaged.
    """
    file = Path(folder) / "log.jsonl"
    lines, entries = file.read_text(errors="replace").splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entries.append({"step": entry["step"], **entry})
        except (json.JSONDecodeError, TypeError, KeyError):
            if number < len(lines):
                raise ValueError(
                    f"{file}: line {number} is not a JSON object with a step. Fix or delete it."
                ) from None
            log.warning("%s: the last line was cut off in writing; it is left out", file)
    return entries


def _keep_names(accelerator: Accelerator) -> None:
    """Let checkpoints name weights as the models do, not as what wraps these for several processes.

    So any number of processes can resume them.
    """
    unwrap = accelerator.unwrap_model

    def save(models: list[nn.Module], weights: list[dict[str, Any]], folder: str) -> None:
        weights[:] = [unwrap(model).state_dict() for model in models]

    def load(models: list[nn.Module], folder: str) -> None:
        models[:] = [unwrap(model) for model in models]

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _forget_after(file: Path, step: int) -> None:
    if not file.exists():
        return
    lines = [json.dumps(entry) for entry in read_log(file.parent) if entry["step"] <= step]
    write_text(file, "".join(f"{line}\n" for line in lines))
