"""The training loop of all trainers.

`step`, the number of finished optimizer steps, is the one counter: data, noise and learning rate
are pure functions of it and the seed, so a resumed run equals a straight one bit for bit.
"""

import logging
from collections.abc import Callable, Mapping
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
from common.output_folder import Input, in_main_process
from common.seeding import fold
from engine import fsdp
from engine.compilation import compiled_graphs
from engine.config import TrainConfig
from engine.ema import EMA
from engine.guard import Guard
from engine.losses import Batch, LossFunction
from engine.optimization import DiscriminatorTraining, TrainedModule, count_clips, micro_batches
from engine.prefetch import BatchSource, prefetch
from engine.run_folder import RunFolder, read_log
from engine.stop import StopSignal
from engine.watch import Means, ReducedValues, Stopwatch

log = logging.getLogger(__name__)

Preview = Callable[[nn.Module, nn.Module, int, Path], None]
"""Gets the averaged and the raw model, the step and the file that the main process writes, at every
checkpoint, in all processes."""
Evaluate = Callable[[nn.Module], dict[str, float]]
"""Scores a model on held-out data, in all processes, which get the same scores and errors."""


class Stateful(Protocol):
    """Something besides weights that a resumed run needs; its state is kept as JSON."""

    def state_dict(self) -> dict[str, Any]:
        """The state, of types that JSON knows."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


class Trainer:
    """One run: a model, its optimizer and average, and the folder they are kept in.

    In a GAN the discriminator is trained besides, with its own optimizer and clipping. Both take
    their gradients from the weights that the step began with, and step together.

    Building a trainer restores the newest checkpoint that the folder holds; it writes nothing.
    """

    def __init__(
        self,
        command: Any,
        config: TrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        metadata: dict[str, Any] | None = None,
        discriminator: DiscriminatorTraining | None = None,
        states: dict[str, Stateful] | None = None,
        inputs: Mapping[str, Input] | None = None,
    ):
        """Build or resume the run.

        Args:
            command: the whole config of the command, of which `config` is a part.
            model: on the CPU, with `save_pretrained`.
            metadata: kept with the exported weights, in their `training.json`.
            discriminator: trained beside the model.
            states: what else checkpoints hold, by name.
            inputs: data and weights that the run is made from, by name.
        Raises:
            ValueError: the folder holds a run with another config or other inputs, or the batch
                cannot be shared.
        """
        self.config = config
        self.accelerator = accelerator
        self.metadata = metadata
        config.local_batch_size(accelerator.num_processes)  # refuses what cannot be shared out
        self.folder = RunFolder(config.folder, accelerator)
        self.folder.check(command, inputs)
        self.ema = EMA(model.to(accelerator.device), config.ema_decay)
        self.meta_copy: fsdp.MetaCopy | None = None
        if fsdp.is_active(accelerator):
            self.meta_copy = fsdp.MetaCopy(model)
            fsdp.shard(self.ema.model, accelerator)
        self.trained = [TrainedModule(model, config, accelerator)]
        if (gan := discriminator) is not None:
            assert config.precision != "fp16", "one loss scale cannot serve two optimizers"
            self.trained.append(
                TrainedModule(
                    gan.module,
                    gan.optimizer,
                    accelerator,
                    name="discriminator",
                    start=gan.start,
                    loss=gan.loss,
                )
            )
        if fsdp.is_active(accelerator):
            fsdp.checkpoint_whole(
                accelerator, [(each.module, each.optimizer) for each in self.trained]
            )
        self.watch, self.means, self.stop = Stopwatch(accelerator.device), Means(), StopSignal()
        self.guard = Guard(config.max_skipped_steps, config.spike_factor)
        self.states: dict[str, Stateful] = {"guard": self.guard, **(states or {})}
        self.step = self.clips = self.unreadable_clips = self.stopped_by = 0
        self.graphs_before = compiled_graphs()  # of whatever this process ran before
        self._unread: ReducedValues | None = None  # of the newest step
        if checkpoint := self.folder.latest():
            state = self.folder.load(checkpoint, self.ema.model)
            for each in self.trained:
                each.lay_out_optimizer_state()
            self.step, self.clips = state["step"], state["clips"]
            for name, stateful in self.states.items():
                stateful.load_state_dict(state["states"][name])
            log.info("%s: resuming at step %d of %d", config.folder, self.step, config.steps)

    @property
    def model(self) -> nn.Module:
        """The model, unwrapped."""
        return self.accelerator.unwrap_model(self.trained[0].module)

    def run(
        self,
        batches: BatchSource,
        loss_function: LossFunction,
        preview: Preview | None = None,
        evaluate: Evaluate | None = None,
        *,
        next_command: str | None = None,
    ) -> Path:
        """Train to `config.steps`; returns the folder of the averaged weights, for from_pretrained.

        Args:
            next_command: what to run with the export, shown at the end.
        Raises:
            ValueError: losses or gradients were not finite `max_skipped_steps` times in a row.
            Stopped: SIGTERM or SIGINT came; the state is saved.
        """
        config = self.config
        self.folder.write_identity()
        if self.step:
            self._preview(preview)  # a killed run may have saved without it
        if self.step >= config.steps:
            log.info("%s: all %d steps are done", config.folder, self.step)
            return self._finish(next_command)
        self.folder.start_log(self.step, config.wandb)
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc=Path(config.folder).name,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        with self.stop, bar:
            self.watch.restart()
            for batch in prefetch(batches(self.step), self.accelerator.device):
                self.watch.mark("data")
                self._step(batch, loss_function)
                bar.update()
                last = self.step == config.steps
                save, log_values, score = (
                    every is not None and (last or self.step % every == 0)
                    for every in (config.save_every, config.log_every, config.evaluate_every)
                )
                # What is saved or logged must include this step; else it is read a step later
                if save or log_values or score:
                    self._read_values()
                stopped = self.stopped_by != 0
                scores = self._evaluate(evaluate) if score and evaluate is not None else {}
                if save or log_values or stopped or scores:
                    self._read_values()
                    self._log(scores, bar)
                if save or stopped:
                    self._save()
                    self._preview(preview)
                if stopped:
                    raise Stopped(
                        f"stopped by signal {self.stopped_by} at step {self.step} of "
                        f"{config.steps}, saved in {config.folder}. Run the same command to go on.",
                        self.stopped_by,
                    )
                if last:
                    break
                self.watch.restart()
        return self._finish(next_command)

    def _step(self, batch: Batch, loss_function: LossFunction) -> None:
        """One optimizer step of all modules on this process's part of a global batch."""
        # Forward and backward passes
        losses = self.add_gradients(batch, loss_function, self.step)

        # Clip
        active = self._active(self.step)
        norms = {each.label("grad_norm"): each.clip(self.step) for each in active}

        # Guard: one reduction over the processes brings all that is decided on or logged
        checked = {**losses, **norms}
        counted = (
            batch["unreadable_clips"].sum() if "unreadable_clips" in batch else torch.zeros(())
        )
        reduced = ReducedValues(
            self.step + 1,
            checked,
            {"unreadable_clips": counted, **self.stop.noted()},
            self.accelerator,
        )
        accepted, skip = True, None
        scaler = self.accelerator.scaler
        if scaler is None and self.guard.spike_factor is None:
            skip = reduced.not_finite()  # decided on the device, where nothing waits for the host
            self._read_values()  # of the step before
            self._unread = reduced
        else:
            accepted = self._read(reduced)

        # Update; fp16's loss scale falls only where the optimizer sees what is not finite
        if accepted or scaler is not None:
            for each in active:
                each.update(each.learning_rate_at(self.step, self.config.steps), skip)
        for each in self.trained:
            each.discard_gradients()
        self.step += 1
        if accepted:
            self.ema.update(self.model, self.step, skip)

        # Count
        clips = count_clips(batch) * self.accelerator.num_processes
        self.clips += clips
        self.means.add({"clips": clips})
        self.watch.mark("optimizer")
        self.watch.finish()

    def add_gradients(
        self, batch: Batch, loss_function: LossFunction, step: int
    ) -> dict[str, Tensor]:
        """Add up the gradients of a step over its micro-batches; returns mean losses by name."""
        seed, rank = self.config.seed, self.accelerator.process_index
        torch.manual_seed(fold(seed, "step", step, rank))  # dropout
        size, totals = self.config.micro_batch_size, {}
        for part, info in micro_batches(batch, size=size, seed=seed, step=step, rank=rank):
            for each in self._active(step):
                with each.sync_gradients(info.last):
                    values, part = (each.loss or loss_function)(each.module, part, info)
                    self.watch.mark(each.name or "forward")
                    self.accelerator.backward(values["loss"] * info.share)
                    self.watch.mark(each.name or "backward")
                for name, value in values.items():
                    key = each.label(name)
                    totals[key] = totals.get(key, 0) + value.detach() * info.share
        return totals

    def _active(self, step: int) -> list[TrainedModule]:
        """The modules that are trained after `step` finished steps."""
        return [each for each in self.trained if each.start <= step]

    def _read_values(self) -> None:
        """Read what the newest step has measured, if that is still to be done."""
        if self._unread is not None:
            reduced, self._unread = self._unread, None
            self._read(reduced)

    def _read(self, reduced: ReducedValues) -> bool:
        """Take a step's values into the log's means and the guard; whether it was accepted.

        All processes read the same numbers, and so decide alike.
        """
        values, counts = reduced.read()
        self.unreadable_clips += round(counts["unreadable_clips"] * self.accelerator.num_processes)
        self.stopped_by = self.stopped_by or self.stop.reduced(counts)
        accepted = self.guard.accepts(
            reduced.step, values, [name for name in values if name.endswith("grad_norm")]
        )
        if accepted:
            self.means.add(values)
        return accepted

    def _evaluate(self, evaluate: Evaluate) -> dict[str, float]:
        """Scores of the raw and of the averaged weights."""
        raw, scores = self.model, {}
        was_training = raw.training
        for kind, module in (("raw", raw.eval()), ("ema", self.ema.model)):
            model = self._unsharded(module)
            try:
                with torch.no_grad():
                    values = evaluate(model)
            except ValueError as error:  # such as weights that give no finite videos for now
                if self.accelerator.is_main_process:
                    log.warning("step %d: the %s weights have no score: %s", self.step, kind, error)
                continue
            scores |= {f"eval/{kind}/{name}": value for name, value in values.items()}
        raw.train(was_training)
        return scores

    def _log(self, scores: dict[str, float], bar: tqdm) -> None:
        for lap in self.watch.read():
            self.means.add({f"seconds/{part}": seconds for part, seconds in lap.items()})
        values = self.means.flush()
        seconds = sum(value for name, value in values.items() if name.startswith("seconds/"))
        for each in self._active(self.step - 1):
            rate = each.learning_rate_at(self.step - 1, self.config.steps)
            values[each.label("learning_rate")] = rate
        values |= {
            "seconds_per_step": seconds,
            "clips_per_second": values.pop("clips") / seconds,
            "clips_seen": self.clips,
            "skipped_steps": self.guard.skipped,
            "unreadable_clips": self.unreadable_clips,
            "memory_gb": peak_memory_bytes(self.accelerator.device) / GIGABYTE,
        }
        if graphs := compiled_graphs() - self.graphs_before:
            values["compiled_graphs"] = graphs
        self.folder.write_log(self.step, values | scores)
        if "loss" in values:
            bar.set_postfix(loss=f"{values['loss']:.4g}")

    def _save(self) -> None:
        state = {
            "step": self.step,
            "clips": self.clips,
            "states": {name: stateful.state_dict() for name, stateful in self.states.items()},
        }
        averaged = self._unsharded(self.ema.model)
        self.folder.save(
            state, partial(self._export, averaged), self.config.keep, self.config.keep_every
        )

    def _preview(self, preview: Preview | None) -> None:
        """Write what people look at of this step, unless it is there."""
        file = self.folder.path / "samples" / f"step-{self.step:08d}.mp4"
        if preview is None or in_main_process(file.exists, self.accelerator):
            return
        averaged, raw = self._unsharded(self.ema.model), self._unsharded(self.model)
        try:
            preview(averaged, raw, self.step, file)
        except ValueError as error:  # what is only looked at does not end a run
            if self.accelerator.is_main_process:
                log.warning("step %d: no preview: %s", self.step, error)

    def _unsharded(self, module: nn.Module) -> nn.Module:
        """The model, or its average, with all its weights; all processes have to ask for it."""
        if self.meta_copy is not None:
            return self.meta_copy.unsharded_copy(module, self.accelerator)
        return module

    def _export(self, averaged: nn.Module, folder: Path) -> None:
        """The averaged weights, with how they came about; in the main process."""
        averaged.save_pretrained(folder)  # type: ignore[operator]
        training = {"step": self.step, "ema_decay": self.config.ema_decay}
        write_json(folder / "training.json", {**training, "metadata": self.metadata})

    def _finish(self, next_command: str | None) -> Path:
        target = self.folder.path / "export"
        averaged = self._unsharded(self.ema.model)
        if self.accelerator.is_main_process:
            with atomic_folder(target) as temporary:
                self._export(averaged, temporary)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.accelerator.is_main_process:
            log.info("%s: the averaged weights of step %d", target, self.step)
            newest = read_log(self.folder.path)[-1]
            scores = {name: x for name, x in newest.items() if name.startswith("eval/ema/")}
            shown = scores or {name: newest[name] for name in ("loss",) if name in newest}
            for name, value in shown.items():
                log.info("  %s %.4g", name, value)
            if next_command is not None:
                log.info("next: %s", next_command)
        return target
