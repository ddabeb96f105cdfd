"""What a training step gives to a loss function, and what it gets back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

Batch = dict[str, Any]


@dataclass(frozen=True)
class StepInfo:
    """What a loss may depend on besides the weights and the batch."""

    seed: int
    """The run's seed."""
    step: int
    """Optimizer steps finished so far."""
    positions: range
    """Places of these clips in the global batch. Noise drawn per place does not depend on the
    number of processes."""
    share: float = 1.0
    """These clips' share of what this process sees in the step; below 1 for a micro-batch."""
    last: bool = True
    """Whether this is the last micro-batch of the step."""


class Losses(NamedTuple):
    """What a loss function returns."""

    values: dict[str, Tensor]
    """Scalars: "loss" is minimized, the others are logged."""
    outputs: Mapping[str, Tensor] = MappingProxyType({})
    """What the discriminator's loss of the same micro-batch is given; without gradients."""


LossFunction = Callable[[nn.Module, Any, StepInfo], Losses]
