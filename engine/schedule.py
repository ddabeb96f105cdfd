"""The learning rate over time."""

import math

from engine.config import OptimizerConfig


def learning_rate_at(options: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of the step that follows `step` finished ones, of `steps` in all."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return options.learning_rate
    done = (step - options.warmup_steps) / max(1, steps - options.warmup_steps)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
