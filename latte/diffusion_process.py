"""What training and sampling need of a process, be it diffusion or flow."""

from typing import Protocol

import torch
from torch import Tensor

from latte.diffusion import DiffusionConfig, GaussianDiffusion, ModelFn
from latte.flow import FlowConfig, RectifiedFlow


class DiffusionProcess(Protocol):
    """`GaussianDiffusion` or `RectifiedFlow`; their methods say what the arguments are."""

    @property
    def max_timestep(self) -> float:
        """Timestep of pure noise, the largest that the model gets."""
        ...

    def draw_time(self, generator: torch.Generator) -> Tensor:
        """A time for one row of training, shape (1,)."""
        ...

    def timestep_at(self, share: Tensor) -> Tensor:
        """Timesteps at these shares, in [0, 1], of the way from data to noise, shape (b,)."""
        ...

    def training_loss(
        self,
        model_fn: ModelFn,
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        frame_weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Per-row losses by name, each of shape (b,), of a model at the given times and noise."""
        ...

    def exact_prediction(self, x0: Tensor, x_t: Tensor, t: Tensor, start: Tensor) -> Tensor:
        """Prediction at `x_t` of a model that knows `x0`; the noising began at `start`."""
        ...


def make_process(diffusion: DiffusionConfig, flow: FlowConfig | None) -> DiffusionProcess:
    """The flow, if there is one, else the diffusion.

    Raises:
        ValueError: a flow beside options of diffusion, which it would ignore.
    """
    if flow is None:
        return GaussianDiffusion(diffusion)
    if diffusion != DiffusionConfig():
        raise ValueError(
            "flow replaces diffusion, whose options would have no effect: leave them out, or set "
            "flow to null"
        )
    return RectifiedFlow(flow)
