"""Settings that every training run has."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train: length, batch, optimiser, averaging, and what to keep."""

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
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or half a cosine to zero at `steps`."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float | None = 1.0
    """Gradient norm above which gradients are scaled down; null: only measured."""
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
    """Checkpoints to keep."""

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be positive")
        for name in ("workers", "warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1)")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch={self.micro_batch} must be at least 1")

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

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the step that follows `step` finished ones."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


# What may differ in a continuation, because it does not alter what is learned up to a step.
# `steps` is not here for a cosine schedule, whose course depends on it.
FREE = frozenset({"folder", "workers", "log_every", "save_every", "keep", "steps"})
