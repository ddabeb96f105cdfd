"""The training loop of all trainers.

`step`, the number of finished optimiser steps, is the one counter: data, noise and learning rate
are pure functions of it and the seed, so a resumed run equals a straight one bit for bit.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn
from tqdm import tqdm

from engine.accelerator import make_accelerator
from engine.cli import Stopped
from engine.config import FREE, TrainConfig
from engine.ema import EMA
from engine.files import atomic_folder, write_json
from engine.run import RunFolder
from engine.seeding import fold
from engine.stop import StopSignal

log = logging.getLogger(__name__)

Batch = dict[str, Any]


@dataclass(frozen=True)
class StepInfo:
    """What a loss may depend on besides the weights and the batch."""

    seed: int
    """The run's seed."""
    step: int
    """Optimiser steps finished so far."""
    positions: range
    """Places of these clips in the global batch. Noise drawn per place does not depend on the
    number of processes."""


LossFunction = Callable[[nn.Module, Batch, StepInfo], dict[str, Tensor]]
"""Returns scalars; "loss" is minimised, the others are logged."""
BatchSource = Callable[[int], Iterator[Batch]]
"""Gives this process's batches from a step on."""
Preview = Callable[[nn.Module, int, Path], None]
"""Gets the averaged model, the step and the samples folder, at every checkpoint."""


def training_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of the processes, with the precision and the tracker of a training run."""
    project = ProjectConfiguration(project_dir=config.folder, logging_dir=config.folder)
    return make_accelerator(
        mixed_precision=config.precision, log_with="tensorboard", project_config=project
    )


class Trainer:
    """One run: a model, its optimiser and average, and the folder they are kept in.

    Building it records the config in the run folder and, where the folder holds a checkpoint,
    restores the newest.
    """

    def __init__(
        self,
        command: Any,
        config: TrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        notes: dict[str, Any] | None = None,
    ):
        """Build or resume the run.

        Args:
            command: the whole config of the command, of which `config` is a part.
            model: on the CPU, with `save_pretrained`.
            notes: kept with the exported weights, in their `training.json`.
        Raises:
            ValueError: the folder holds a run with another config, or the batch cannot be shared.
        """
        self.config = config
        self.accelerator = accelerator
        self.notes = notes
        self.local_batch = config.local_batch(accelerator.num_processes)
        self.folder = RunFolder(config.folder, accelerator)
        self.folder.claim(command, FREE - {"steps"} if config.schedule == "cosine" else FREE)
        self.ema = EMA(model.to(accelerator.device), config.ema_decay)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.step = 0
        if checkpoint := self.folder.latest():
            self.step = self.folder.load(checkpoint, self.ema.model)["step"]
            log.info("%s: resuming at step %d of %d", config.folder, self.step, config.steps)

    def run(
        self, batches: BatchSource, loss_function: LossFunction, preview: Preview | None = None
    ) -> Path:
        """Train to `config.steps`; returns the folder of the averaged weights, for from_pretrained.

        Raises:
            ValueError: the loss is not finite.
            Stopped: SIGTERM or SIGINT came; the state is saved.
        """
        if self.step >= self.config.steps:
            log.info("%s: all %d steps are done", self.config.folder, self.step)
            return self._finish()
        self.folder.start_log(self.step)
        window = _Window(self.accelerator)
        with StopSignal(self.accelerator) as stop, self._progress() as bar:
            for batch in batches(self.step):
                window.add(self._update(batch, loss_function))
                bar.update()
                stopped_by = stop.agreed()
                last = self.step == self.config.steps or stopped_by != 0
                save = last or self.step % self.config.save_every == 0
                if save or self.step % self.config.log_every == 0:
                    self._log(window, bar)
                if save:
                    self._save(preview)
                if stopped_by:
                    raise Stopped(self._stop_message(stopped_by), stopped_by)
                if last:
                    break
        return self._finish()

    def _update(self, batch: Batch, loss_function: LossFunction) -> dict[str, Tensor]:
        """One optimiser step on this process's part of a global batch, in micro-batches."""
        rank, config = self.accelerator.process_index, self.config
        torch.manual_seed(fold(config.seed, "step", self.step, rank))  # dropout
        size = config.micro_batch or self.local_batch
        starts = range(0, self.local_batch, size)
        total: dict[str, Tensor] = {}
        for start in starts:
            first = rank * self.local_batch + start
            info = StepInfo(config.seed, self.step, range(first, first + size))
            part = {name: value[start : start + size] for name, value in batch.items()}
            synchronise = start == starts[-1]
            with nullcontext() if synchronise else self.accelerator.no_sync(self.model):
                values = loss_function(self.model, part, info)
                self.accelerator.backward(values["loss"] / len(starts))
            for name, value in values.items():
                total[name] = total.get(name, 0) + value.detach() / len(starts)
        limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        assert norm is not None
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.accelerator.unwrap_model(self.model), self.step)
        return {**total, "grad_norm": norm.detach()}

    def _log(self, window: "_Window", bar: tqdm) -> None:
        values = window.flush(self.step)
        values["learning_rate"] = self.config.learning_rate_at(self.step - 1)
        values["clips_seen"] = self.step * self.config.global_batch
        values["clips_per_second"] = self.config.global_batch / values["seconds_per_step"]
        self.folder.write_log(self.step, values)
        bar.set_postfix(loss=f"{values['loss']:.4g}")

    def _save(self, preview: Preview | None) -> None:
        self.folder.save(self.step, self.ema.model, self.config.keep)
        if preview and self.accelerator.is_main_process:
            preview(self.ema.model, self.step, self.folder.path / "samples")

    def _finish(self) -> Path:
        target = self.folder.path / "export"
        if self.accelerator.is_main_process:
            with atomic_folder(target) as temporary:
                self.ema.model.save_pretrained(temporary)  # type: ignore[operator]
                training = {"step": self.step, "ema_decay": self.config.ema_decay}
                write_json(temporary / "training.json", {**training, "notes": self.notes})
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return target

    def _progress(self) -> tqdm:
        return tqdm(
            total=self.config.steps,
            initial=self.step,
            desc=Path(self.config.folder).name,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )

    def _stop_message(self, number: int) -> str:
        return (
            f"stopped by signal {number} at step {self.step} of {self.config.steps}, saved in "
            f"{self.config.folder}. Run the same command to go on."
        )


class _Window:
    """Values of the steps since the last log line, kept on the device until then."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.values: list[dict[str, Tensor]] = []
        self.since = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        self.values.append(values)

    def flush(self, step: int) -> dict[str, float]:
        """Means over the window and over the processes.

        Raises:
            ValueError: a value is not finite; the message names the first such step.
        """
        names = list(self.values[0])
        table = torch.stack([torch.stack([v[n].float() for n in names]) for v in self.values])
        table = self.accelerator.reduce(table, "mean")
        assert isinstance(table, Tensor)
        if len(bad := (~table.isfinite()).nonzero()):
            row, column = bad[0].tolist()
            raise ValueError(
                f"{names[column]} is {table[row, column].item()} at step "
                f"{step - len(self.values) + row + 1}. The last checkpoint is older: lower "
                "the learning rate or max_grad_norm and rerun in another folder."
            )
        means = dict(zip(names, table.mean(0).tolist(), strict=True))
        now = time.perf_counter()
        means["seconds_per_step"] = (now - self.since) / len(self.values)
        self.values, self.since = [], now
        return means
