"""Settings that every training run has."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from common.config import MAY_CHANGE, BatchSize, Config, Workers


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """AdamW, its learning rate over time, and clipping."""

    learning_rate: Annotated[float, Gt(0)] = 1e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or half a cosine to zero at the last step."""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps over which the learning rate rises linearly."""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """AdamW's weight decay."""
    max_grad_norm: Annotated[float | None, Gt(0)] = 1.0
    """Gradient norm above which gradients are scaled down; null: only measured."""
    clip_from_step: Annotated[int, Ge(0)] = 0
    """Finished steps before which gradients are only measured."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OptimizerConfig):
    """How to train: length, batch, optimizer, averaging, guards, and what to keep."""

    folder: Annotated[str, MAY_CHANGE]
    """Run folder; rerunning with the same folder resumes."""
    steps: Annotated[int, Ge(1), Le(10**9), MAY_CHANGE]
    """Optimizer steps in all."""
    global_batch_size: BatchSize
    """Clips per step over all processes."""
    micro_batch_size: BatchSize | None = None
    """Clips per forward pass and process; gradients are accumulated. Default: all at once."""
    seed: int = 0
    """Data order, noise and initial weights follow from it and the step."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Decay of the averaged weights, reached after a warm-up of (1 + step) / (10 + step)."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the forward and backward pass; "no" is float32."""
    workers: Annotated[Workers, MAY_CHANGE] = 0
    """Loader processes per training process."""
    log_every: Annotated[int, Ge(1), MAY_CHANGE] = 50
    """Steps between log lines."""
    save_every: Annotated[int, Ge(1), MAY_CHANGE] = 1000
    """Steps between checkpoints and previews."""
    keep: Annotated[int, Ge(1), MAY_CHANGE] = 2
    """Newest checkpoints to keep."""
    keep_every: Annotated[int | None, Ge(1), MAY_CHANGE] = None
    """Also keep the checkpoints whose step is a multiple of this; null: none."""
    evaluate_every: Annotated[int | None, Ge(1), MAY_CHANGE] = None
    """Steps between evaluations on held-out data, where the command has them; null: never."""
    max_skipped_steps: Annotated[int, Ge(1), Le(10**9), MAY_CHANGE] = 10
    """A step with a loss or gradient that is not finite changes no weight; the run stops when so
    many come in a row."""
    spike_factor: Annotated[float | None, Gt(1)] = None
    """Skip the step also when a gradient norm exceeds this many times the median of the last 100
    steps; null: never."""
    wandb: Annotated[str | None, MAY_CHANGE] = None
    """Project of Weights & Biases to log to as well; null: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise ValueError(
                f"keep_every={self.keep_every} must be a multiple of save_every={self.save_every}: "
                "only then is there a checkpoint to keep"
            )

    def fixed_fields(self) -> frozenset[str]:
        """The course of a cosine schedule depends on the steps."""
        return frozenset({"steps"} if self.schedule == "cosine" else ())

    def local_batch_size(self, world_size: int) -> int:
        """Clips per step of one process.

        Raises:
            ValueError: the processes, or micro_batch_size, do not divide the batch.
        """
        if self.global_batch_size % world_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} cannot be shared by {world_size} "
                f"processes: use a multiple of {world_size}"
            )
        local = self.global_batch_size // world_size
        # where fewer clips than a micro-batch fall to a process, it takes all at once
        if self.micro_batch_size is not None and local % min(self.micro_batch_size, local):
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} does not divide the {local} clips per "
                f"process (global_batch_size={self.global_batch_size}, {world_size} processes)"
            )
        return local
