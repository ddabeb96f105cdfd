"""Settings that every training run has."""

import math
from dataclasses import dataclass
from typing import Any, Literal


def check_settings(
    config: Any,
    *,
    at_least_1: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    not_negative: tuple[str, ...] = (),
) -> None:
    """Refuse (`ValueError`) fields out of range; a field that is None is off, and allowed."""
    rules = (
        (at_least_1, "be at least 1", lambda value: value >= 1),
        (positive, "be positive", lambda value: value > 0),
        (not_negative, "not be negative", lambda value: value >= 0),
    )
    for names, demand, holds in rules:
        for name in names:
            value = getattr(config, name)
            if value is not None and not holds(value):
                raise ValueError(f"{name}={value} must {demand}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its learning rate over time, and clipping."""

    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or half a cosine to zero at the last step."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float | None = 1.0
    """Gradient norm above which gradients are scaled down; null: only measured."""
    clip_from_step: int = 0
    """Finished steps before which gradients are only measured."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=("learning_rate", "max_grad_norm"),
            not_negative=("warmup_steps", "weight_decay", "clip_from_step"),
        )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must be in [0, 1)")

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of the step that follows `step` finished ones, of `steps` in all."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OptimizerConfig):
    """How to train: length, batch, optimiser, averaging, guards, and what to keep."""

    folder: str
    """Run folder; rerunning with the same folder resumes."""
    steps: int
    """Optimiser steps in all."""
    global_batch: int
    """Clips per step over all processes."""
    micro_batch: int | None = None
    """Clips per forward pass and process; gradients are accumulated. Default: all at once."""
    seed: int = 0
    """Data order, noise and initial weights follow from it and the step."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, reached after a warm-up of (1 + step) / (10 + step)."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the forward and backward pass; "no" is float32."""
    workers: int = 0
    """Loader processes per training process."""
    log_every: int = 50
    """Steps between log lines."""
    save_every: int = 1000
    """Steps between checkpoints and previews."""
    keep: int = 2
    """Newest checkpoints to keep."""
    keep_every: int | None = None
    """Also keep the checkpoints whose step is a multiple of this; null: none."""
    evaluate_every: int | None = None
    """Steps between evaluations on held-out data, where the command has them; null: never."""
    max_bad_steps: int = 10
    """A step with a loss or gradient that is not finite changes no weight; the run stops when so
    many come in a row."""
    spike_factor: float | None = None
    """Skip the step also when a gradient norm exceeds this many times the median of the last 100
    steps; null: never."""
    wandb: str | None = None
    """Project of Weights & Biases to log to as well; null: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(
            self,
            at_least_1=(
                *("steps", "global_batch", "micro_batch", "log_every", "save_every", "keep"),
                *("keep_every", "evaluate_every", "max_bad_steps"),
            ),
            not_negative=("workers",),
        )
        if self.spike_factor is not None and self.spike_factor <= 1:
            raise ValueError(f"spike_factor={self.spike_factor} must be above 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1)")
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise ValueError(
                f"keep_every={self.keep_every} must be a multiple of save_every={self.save_every}: "
                "only then is there a checkpoint to keep"
            )

    def local_batch(self, world_size: int) -> int:
        """Clips per step of one process.

        Raises:
            ValueError: the processes, or micro_batch, do not divide the batch.
        """
        if self.global_batch % world_size:
            raise ValueError(
                f"global_batch={self.global_batch} cannot be shared by {world_size} processes: "
                f"use a multiple of {world_size}"
            )
        local = self.global_batch // world_size
        if self.micro_batch is not None and local % self.micro_batch:
            raise ValueError(
                f"micro_batch={self.micro_batch} does not divide the {local} clips per process "
                f"(global_batch={self.global_batch}, {world_size} processes)"
            )
        return local


# What may differ in a continuation, because it does not alter what is learned up to a step, but for
# rounding.
# `steps` is not here for a cosine schedule, whose course depends on it.
FREE = frozenset(
    {
        *("folder", "workers", "log_every", "save_every", "keep", "keep_every", "steps", "wandb"),
        *("evaluate_every", "held_out", "held_out_clips", "fvd", "scores", "previews", "dry_run"),
        "max_bad_steps",
        *("activation_checkpointing", "compile"),
    }
)
