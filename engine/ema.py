"""Exponential moving average of weights."""

import copy

import torch
from torch import Tensor, nn

from engine.fsdp import local


class EMA:
    """A float32 copy of a model that follows it: ema += (1 - decay) * (weights - ema).

    The decay warms up as (1 + step) / (10 + step), so that early averages forget the initial
    weights. What is frozen stays as it is.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, skip: Tensor | None = None) -> None:
        """Take in the weights after `step` finished steps, unless `skip`, on the device, is 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        both = zip(self.model.parameters(), model.parameters(), strict=True)
        pairs = [(local(average), local(p)) for average, p in both if p.requires_grad]
        averages, weights = (list(each) for each in zip(*pairs, strict=True))
        if skip is None:
            torch._foreach_lerp_(averages, weights, weight)
        else:
            scaled = weight * (1 - skip.to(averages[0].dtype))
            torch._foreach_lerp_(averages, weights, [scaled] * len(averages))
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(value)
