"""The modules that a run trains, one or two: optimisers, clipping, and the gradients of a step."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.seeding import fold
from engine import fsdp
from engine.config import OptimizerConfig, TrainConfig
from engine.watch import Stopwatch

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
    share: float = 1.0
    """These clips' share of what this process sees in the step; below 1 for a micro-batch."""
    last: bool = True
    """Whether this is the last micro-batch of the step."""


LossFunction = Callable[[nn.Module, Batch, StepInfo], dict[str, Tensor]]
"""Returns scalars; "loss" is minimised, the others are logged. It gets its micro-batch alone and
may add to it what a player that comes later in the same step needs."""


@dataclass(frozen=True, kw_only=True)
class Opponent:
    """A second module, trained on the same batches: the discriminator of a GAN."""

    module: nn.Module
    """On the CPU."""
    optimizer: OptimizerConfig
    """Its own optimiser and clipping; the schedule counts from `start`."""
    loss: LossFunction
    """Called after the main loss of the same micro-batch."""
    start: int = 0
    """Finished steps of the run at which its training begins."""
    name: str = "discriminator"
    """Prefix of its logged values."""


class Player:
    """A module with its optimiser, prepared for all processes."""

    def __init__(
        self,
        module: nn.Module,
        options: OptimizerConfig,
        loss: LossFunction | None,
        accelerator: Accelerator,
        name: str = "",
        start: int = 0,
    ):
        self.options = options
        self.loss = loss
        self.accelerator = accelerator
        self.name = name
        self.start = start
        self.fsdp = fsdp.is_active(accelerator)
        if self.fsdp:
            # an opponent is small, and whole its loss may freeze it or differentiate it twice
            place = fsdp.shard if loss is None else fsdp.replicate
            self.module = place(module, accelerator)
            self.optimizer = self._adamw(self.module)
        else:
            module.to(accelerator.device)
            self.module, self.optimizer = accelerator.prepare(module, self._adamw(module))

    def label(self, value: str) -> str:
        """The name under which one of its values is logged."""
        return f"{self.name}/{value}" if self.name else value

    def exchange(self, now: bool) -> AbstractContextManager[Any]:
        """Within, a forward and backward pass lets the processes exchange gradients only if `now`.

        What they have added up before is exchanged with it.
        """
        if now:
            return nullcontext()
        no_sync = fsdp.no_sync if self.fsdp else self.accelerator.no_sync
        return no_sync(self.module)

    def clip(self, step: int) -> Tensor:
        """Clip the gradients of the step after `step` finished ones; returns their norm before."""
        due = step - self.start >= self.options.clip_from_step
        limit = (self.options.max_grad_norm if due else None) or math.inf
        if self.fsdp:
            return fsdp.clip_grad_norm(self.module, limit)
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), limit)
        assert norm is not None
        return norm.detach()

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Its learning rate after `step` finished steps of the run's `steps`."""
        return self.options.learning_rate_at(step - self.start, steps - self.start)

    def _adamw(self, module: nn.Module) -> torch.optim.AdamW:
        options = self.options
        return torch.optim.AdamW(
            module.parameters(),
            lr=options.learning_rate,
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=True,
        )


class Players:
    """The model and, in a GAN, its opponent: the gradients and the update of one step.

    Both take their gradients from the weights that the step began with, and step together.
    """

    def __init__(
        self,
        model: nn.Module,
        opponent: Opponent | None,
        config: TrainConfig,
        accelerator: Accelerator,
        watch: Stopwatch,
    ):
        self.config = config
        self.accelerator = accelerator
        self.watch = watch
        self.all = [Player(model, config, None, accelerator)]
        if opponent is not None:
            assert config.precision != "fp16", "one loss scale cannot serve two optimisers"
            o = opponent
            self.all.append(Player(o.module, o.optimizer, o.loss, accelerator, o.name, o.start))
        if fsdp.is_active(accelerator):
            trained = [(player.module, player.optimizer) for player in self.all]
            fsdp.checkpoint_whole(accelerator, trained)

    @property
    def model(self) -> nn.Module:
        """The first player's module, unwrapped."""
        return self.accelerator.unwrap_model(self.all[0].module)

    @property
    def all_from(self) -> int:
        """Finished steps from which on all play."""
        return max(player.start for player in self.all)

    def active(self, step: int) -> list[Player]:
        """Those that play after `step` finished steps."""
        return [player for player in self.all if player.start <= step]

    def gradients(self, batch: Batch, main: LossFunction, step: int) -> dict[str, Tensor]:
        """Add up the gradients of a step over its micro-batches.

        Args:
            batch: this process's part of the global batch.
            main: the loss of the model.
        Returns: mean losses of this process, by name.
        """
        rank, count = self.accelerator.process_index, count_clips(batch)
        torch.manual_seed(fold(self.config.seed, "step", step, rank))  # dropout
        size = self.config.micro_batch_size or count
        totals: dict[str, Tensor] = {}
        for start in range(0, count, size):
            part = {name: value[start : start + size] for name, value in batch.items()}
            clips, last = count_clips(part), start + size >= count
            positions = range(rank * count + start, rank * count + start + clips)
            info = StepInfo(self.config.seed, step, positions, clips / count, last)
            for player in self.active(step):
                with player.exchange(last):
                    values = (player.loss or main)(player.module, part, info)
                    self.watch.mark(player.name or "forward")
                    self.accelerator.backward(values["loss"] * info.share)
                    self.watch.mark(player.name or "backward")
                for name, value in values.items():
                    key = player.label(name)
                    totals[key] = totals.get(key, 0) + value.detach() * info.share
        return totals

    def clip(self, step: int) -> dict[str, Tensor]:
        """Clip the gradients of each; returns their norms before."""
        return {player.label("grad_norm"): player.clip(step) for player in self.active(step)}

    def update(self, step: int) -> None:
        """One optimiser step of each, after `step` finished ones."""
        for player in self.active(step):
            for group in player.optimizer.param_groups:
                group["lr"] = player.learning_rate_at(step, self.config.steps)
            player.optimizer.step()

    def learning_rates(self, step: int) -> dict[str, float]:
        """What `update` sets, by name."""
        return {
            player.label("learning_rate"): player.learning_rate_at(step, self.config.steps)
            for player in self.active(step)
        }

    def discard_gradients(self) -> None:
        """Forget the gradients of all."""
        for player in self.all:
            player.optimizer.zero_grad(set_to_none=True)

    def reserve(self) -> list[Tensor]:
        """Memory as large as AdamW takes at its first step, of those that have yet to step."""
        waiting = [player for player in self.all if not player.optimizer.state]
        parameters = [p for player in waiting for p in player.module.parameters()]
        return [torch.empty_like(p) for p in parameters for _ in range(2)]


def count_clips(batch: Batch) -> int:
    """Clips of a batch: the length of any of its values."""
    return len(next(iter(batch.values())))
