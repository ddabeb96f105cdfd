"""The modules that a run trains: the model and, in a GAN, the discriminator."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine import fsdp
from engine.config import OptimizerConfig
from engine.losses import Batch, LossFunction, StepInfo
from engine.schedule import learning_rate_at


@dataclass(frozen=True, kw_only=True)
class DiscriminatorTraining:
    """How the discriminator of a GAN is trained, on the same batches as the model."""

    module: nn.Module
    """On the CPU."""
    optimizer: OptimizerConfig
    """Its own optimizer and clipping; the schedule counts from `start`."""
    loss: LossFunction
    """Given the `outputs` of the model's loss in place of a batch."""
    start: int = 0
    """Finished steps of the run at which its training begins."""


class TrainedModule:
    """A module with its optimizer, prepared for all processes."""

    def __init__(
        self,
        module: nn.Module,
        options: OptimizerConfig,
        accelerator: Accelerator,
        *,
        name: str = "",
        start: int = 0,
        loss: LossFunction | None = None,
    ):
        """`name`: prefix of its logged values. `start`: finished steps at which it begins.
        `loss`: None for the one that the run is given."""
        self.options = options
        self.accelerator = accelerator
        self.name = name
        self.start = start
        self.loss = loss
        self.fsdp = fsdp.is_active(accelerator)
        if self.fsdp:
            # a discriminator is small, and whole its loss may freeze it or differentiate it twice
            place = fsdp.replicate if name else fsdp.shard
            self.module = place(module, accelerator)
            self.optimizer = self._adamw(self.module)
        else:
            module.to(accelerator.device)
            self.module, self.optimizer = accelerator.prepare(module, self._adamw(module))

    def label(self, value: str) -> str:
        """The name under which one of its values is logged."""
        return f"{self.name}/{value}" if self.name else value

    def sync_gradients(self, enabled: bool) -> AbstractContextManager[Any]:
        """Within, backward passes average gradients over the processes only if `enabled`.

        What was added up before without is averaged with it.
        """
        if enabled:
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
        return learning_rate_at(self.options, step - self.start, steps - self.start)

    def update(self, learning_rate: float, skip: Tensor | None = None) -> None:
        """One step of AdamW; if `skip` is 1, nothing changes. The host does not wait for `skip`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if skip is not None:  # fused AdamW reads it on the device, as it does for a GradScaler
            setattr(getattr(self.optimizer, "optimizer", self.optimizer), "found_inf", skip)  # noqa: B010
        self.optimizer.step()

    def discard_gradients(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def lay_out_optimizer_state(self) -> None:
        """Put AdamW's moments in the order of the weights in memory, where a checkpoint has them
        otherwise: fused AdamW goes through both as they lie."""
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    moments[name] = torch.empty_like(parameter).copy_(value)

    def allocate_optimizer_state(self) -> list[Tensor]:
        """Memory as large as AdamW takes at its first step, if that is yet to come."""
        parameters = [] if self.optimizer.state else trainable(self.module)
        return [torch.empty_like(p) for p in parameters for _ in range(2)]

    def _adamw(self, module: nn.Module) -> torch.optim.AdamW:
        options = self.options
        return torch.optim.AdamW(
            trainable(module),
            lr=options.learning_rate,
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=True,
        )


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that take gradients; the others are frozen."""
    return [p for p in module.parameters() if p.requires_grad]


def micro_batches(
    batch: Batch, *, size: int | None, seed: int, step: int, rank: int
) -> Iterator[tuple[Batch, StepInfo]]:
    """Parts of a process's batch, of `size` clips each or all at once, and their places."""
    count = count_clips(batch)
    for start in range(0, count, size or count):
        part = {name: value[start : start + (size or count)] for name, value in batch.items()}
        clips = count_clips(part)
        first = rank * count + start
        last = start + clips >= count
        yield part, StepInfo(seed, step, range(first, first + clips), clips / count, last)


def count_clips(batch: Batch) -> int:
    """Clips of a batch: the length of any of its values."""
    return len(next(iter(batch.values())))
