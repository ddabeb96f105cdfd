"""The training loop of all trainers.

`step`, the number of finished optimiser steps, is the one counter: data, noise and learning rate
are pure functions of it and the seed, so a resumed run equals a straight one bit for bit.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from common.cli import Stopped
from common.files import atomic_folder, write_json
from common.measure import GIGABYTE, peak_memory_bytes
from common.output_folder import Input
from engine import fsdp
from engine.config import TrainConfig
from engine.ema import EMA
from engine.guard import Guard
from engine.optimization import Batch, LossFunction, Opponent, Players, count_clips
from engine.run_folder import RunFolder
from engine.stop import StopSignal
from engine.watch import Means, Stopwatch

log = logging.getLogger(__name__)

BatchSource = Callable[[int], Iterator[Batch]]
"""Gives this process's batches from a step on. Their shapes may differ from step to step; all
processes get equally many clips at a step."""
Preview = Callable[[nn.Module, nn.Module, int, Path], None]
"""Gets the averaged and the raw model, the step and the samples folder, at every checkpoint, in the
main process."""
Evaluate = Callable[[nn.Module], dict[str, float]]
"""Scores a model on held-out data, in the main process."""


class Stateful(Protocol):
    """Something besides weights that a resumed run needs; its state is kept as JSON."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trainer:
    """One run: a model, its optimiser and average, and the folder they are kept in.

    A GAN has an `Opponent` besides, with its own optimiser and clipping. Both take their gradients
    from the weights that the step began with, and step together.

    Building a trainer restores the newest checkpoint that the folder holds; it writes nothing.
    """

    def __init__(
        self,
        command: Any,
        config: TrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        notes: dict[str, Any] | None = None,
        opponent: Opponent | None = None,
        states: dict[str, Stateful] | None = None,
        inputs: Mapping[str, Input] | None = None,
    ):
        """Build or resume the run.

        Args:
            command: the whole config of the command, of which `config` is a part.
            model: on the CPU, with `save_pretrained`.
            notes: kept with the exported weights, in their `training.json`.
            opponent: trained beside the model.
            states: what else checkpoints hold, by name.
            inputs: data and weights that the run is made from, by name.
        Raises:
            ValueError: the folder holds a run with another config or other inputs, or the batch
                cannot be shared.
        """
        self.config = config
        self.accelerator = accelerator
        self.notes = notes
        self.local_batch = config.local_batch(accelerator.num_processes)
        self.folder = RunFolder(config.folder, accelerator)
        self.folder.check(command, inputs)
        self.ema = EMA(model.to(accelerator.device), config.ema_decay)
        self.shell: fsdp.Shell | None = None
        if fsdp.is_active(accelerator):
            self.shell = fsdp.Shell(model)
            fsdp.shard(self.ema.model, accelerator)
        self.watch = Stopwatch(accelerator.device)
        self.players = Players(model, opponent, config, accelerator, self.watch)
        self.guard = Guard(config.max_skipped_steps, config.spike_factor)
        self.states: dict[str, Stateful] = {"guard": self.guard, **(states or {})}
        self.step = self.clips = self.bad_samples = 0
        if checkpoint := self.folder.latest():
            state = self.folder.load(checkpoint, self.ema.model)
            self.step, self.clips = state["step"], state["clips"]
            for name, stateful in self.states.items():
                stateful.load_state_dict(state["states"][name])
            log.info("%s: resuming at step %d of %d", config.folder, self.step, config.steps)

    def run(
        self,
        batches: BatchSource,
        loss_function: LossFunction,
        preview: Preview | None = None,
        evaluate: Evaluate | None = None,
    ) -> Path:
        """Train to `config.steps`; returns the folder of the averaged weights, for from_pretrained.

        Raises:
            ValueError: losses or gradients were not finite `max_skipped_steps` times in a row.
            Stopped: SIGTERM or SIGINT came; the state is saved.
        """
        self.folder.claim()
        if self.step >= self.config.steps:
            log.info("%s: all %d steps are done", self.config.folder, self.step)
            return self._finish()
        self.folder.start_log(self.step, self.config.wandb)
        means = Means()
        with StopSignal(self.accelerator) as stop, self._progress() as bar:
            self.watch.restart()
            for batch in batches(self.step):
                self.watch.mark("data")
                means.add(self._update(batch, loss_function))
                bar.update()
                stopped_by = stop.agreed()
                last = self.step == self.config.steps or stopped_by != 0
                save = last or self.step % self.config.save_every == 0
                scores = self._evaluate(evaluate, last and not stopped_by)
                if save or scores or self.step % self.config.log_every == 0:
                    self._log(means, scores, bar)
                if save:
                    self._save(preview)
                if stopped_by:
                    raise Stopped(self._stop_message(stopped_by), stopped_by)
                if last:
                    break
                self.watch.restart()
        return self._finish()

    def rehearse(self, batch: Batch, loss_function: LossFunction) -> int:
        """Run a step's forward and backward passes, of all players, and change nothing.

        Shows before the run what memory a step takes, the discriminator and AdamW's state included.

        Args:
            batch: like the largest of this process's batches; its values do not matter.
        Returns:
            Highest memory so far, bytes: of the accelerator, on a CPU of the whole process.
        Raises:
            ValueError: the memory does not suffice.
        """
        kept = {name: stateful.state_dict() for name, stateful in self.states.items()}
        try:
            reserved = self.players.reserve()
            self.players.gradients(batch, loss_function, max(self.step, self.players.all_from))
            memory = peak_memory_bytes(self.accelerator.device)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                "one step takes more memory than there is: lower micro_batch_size or the clips' "
                f"size. ({error})"
            ) from None
        del reserved
        self.players.discard_gradients()
        for name, stateful in self.states.items():
            stateful.load_state_dict(kept[name])
        self.watch.restart()
        return memory

    def _update(self, batch: Batch, loss_function: LossFunction) -> dict[str, float]:
        """One optimiser step of all players on this process's part of a global batch.

        Returns: means over the processes of the losses and norms, unless the step was refused, and
        the seconds by part.
        """
        losses = self.players.gradients(batch, loss_function, self.step)
        norms = self.players.clip(self.step)
        bad = batch.get("bad_samples", torch.zeros(1)).sum().to(self.accelerator.device)
        values = self._agreed({**losses, **norms, "bad": bad})
        self.bad_samples += round(values.pop("bad") * self.accelerator.num_processes)
        accepted = self.guard.accepts(self.step + 1, values, norms)
        # fp16's loss scale falls only where the optimiser sees what is not finite; it skips then
        if accepted or self.accelerator.scaler is not None:
            self.players.update(self.step)
        self.players.discard_gradients()
        self.step += 1
        clips = count_clips(batch) * self.accelerator.num_processes
        self.clips += clips
        if accepted:
            self.ema.update(self.players.model, self.step)
        self.watch.mark("optimiser")
        seconds = {f"seconds/{part}": value for part, value in self.watch.lap().items()}
        return {**(values if accepted else {}), **seconds, "clips": clips}

    def _agreed(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Means over the processes, the same numbers on each."""
        row = torch.stack([value.detach().float() for value in values.values()])
        row = self.accelerator.reduce(row, "mean")
        assert isinstance(row, Tensor)
        return dict(zip(values, row.tolist(), strict=True))

    def _evaluate(self, evaluate: Evaluate | None, last: bool) -> dict[str, float]:
        """Scores of the raw and of the averaged weights, where they are due."""
        every = self.config.evaluate_every
        if evaluate is None or every is None or (self.step % every and not last):
            return {}
        raw, scores = self.players.model, {}
        was_training = raw.training
        for kind, module in (("raw", raw.eval()), ("ema", self.ema.model)):
            model = self._whole(module)
            if model is None:
                continue
            try:
                with torch.no_grad():
                    values = evaluate(model)
            except ValueError as error:  # such as weights that give no finite videos for now
                log.warning("step %d: the %s weights have no score: %s", self.step, kind, error)
                continue
            scores |= {f"eval/{kind}/{name}": value for name, value in values.items()}
        raw.train(was_training)
        return scores

    def _log(self, means: Means, scores: dict[str, float], bar: tqdm) -> None:
        values = means.flush()
        seconds = sum(value for name, value in values.items() if name.startswith("seconds/"))
        values |= self.players.learning_rates(self.step - 1)
        values |= {
            "seconds_per_step": seconds,
            "clips_per_second": values.pop("clips") / seconds,
            "clips_seen": self.clips,
            "skipped_steps": self.guard.skipped,
            "bad_samples": self.bad_samples,
            "memory_gb": peak_memory_bytes(self.accelerator.device) / GIGABYTE,
        }
        self.folder.write_log(self.step, values | scores)
        if "loss" in values:
            bar.set_postfix(loss=f"{values['loss']:.4g}")

    def _save(self, preview: Preview | None) -> None:
        state = {
            "step": self.step,
            "clips": self.clips,
            "states": {name: stateful.state_dict() for name, stateful in self.states.items()},
        }
        averaged = self._whole(self.ema.model)
        self.folder.save(
            state, partial(self._export, averaged), self.config.keep, self.config.keep_every
        )
        raw = self._whole(self.players.model) if preview else None
        if preview and averaged is not None and raw is not None:
            try:
                preview(averaged, raw, self.step, self.folder.path / "samples")
            except ValueError as error:  # what is only looked at does not end a run
                log.warning("step %d: no preview: %s", self.step, error)

    def _whole(self, module: nn.Module) -> nn.Module | None:
        """The model, or its average, with all its weights: in the main process, else None.

        All processes have to ask for it.
        """
        if self.shell is not None:
            return self.shell.filled(module, self.accelerator)
        return module if self.accelerator.is_main_process else None

    def _export(self, averaged: nn.Module | None, folder: Path) -> None:
        """The averaged weights, with how they came about; in the main process."""
        assert averaged is not None
        averaged.save_pretrained(folder)  # type: ignore[operator]
        training = {"step": self.step, "ema_decay": self.config.ema_decay}
        write_json(folder / "training.json", {**training, "notes": self.notes})

    def _finish(self) -> Path:
        target = self.folder.path / "export"
        averaged = self._whole(self.ema.model)
        if averaged is not None:
            with atomic_folder(target) as temporary:
                self._export(averaged, temporary)
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
