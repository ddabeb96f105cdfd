"""Rectified flow: straight paths from data to noise, and the velocity along them.

x_t = (1 - t) x_0 + t noise for t in [0, 1], as in `latte.diffusion` 0 the data; the model predicts
dx/dt = noise - x_0 and gets 1000 t for a timestep, the units that it knows from diffusion.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from common.config import Config
from latte.diffusion import GuidanceInterval, Latents, ModelFn, frame_mean, model_at

UNITS = 1000.0
"""What a model is told at t = 1."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Config):
    """Rectified flow, and at which times it is trained."""

    times: Literal["uniform", "logit_normal"] = "logit_normal"
    """Distribution of training times: uniform, or the logistic function of a normal variable, which
    prefers the middle."""
    mean: float = 0.0
    """Of that normal variable; above 0 prefers noise."""
    std: Annotated[float, Gt(0)] = 1.0
    """Its standard deviation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times == "uniform" and (self.mean, self.std) != (0.0, 1.0):
            raise ValueError(
                f"FlowConfig: mean={self.mean} and std={self.std} require "
                "times=logit_normal, not uniform."
            )


class RectifiedFlow:
    """The paths, and the loss of a model that predicts the velocity.

    Source: Liu et al. 2023, "Flow Straight and Fast"; logit-normal times: Esser et al. 2024,
    section 3.1.
    """

    max_timestep = UNITS
    """The timestep of most noise, in the units that a model gets."""

    def __init__(self, config: FlowConfig | None = None):
        self.config = config or FlowConfig()

    def draw_time(self, generator: torch.Generator) -> Float[Tensor, " 1"]:
        """A time for one row of training, from the config's distribution."""
        if self.config.times == "uniform":
            return torch.rand(1, generator=generator)
        normal = torch.randn(1, generator=generator)
        return torch.sigmoid(self.config.mean + self.config.std * normal)

    def timestep_at(self, share: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The times at these shares of the way from data to noise: the same."""
        return share

    def training_loss(
        self,
        model_fn: ModelFn,
        x0: Latents,
        t: Float[Tensor, " b"],
        noise: Latents,
        frame_weight: Float[Tensor, "b t"] | None = None,
    ) -> dict[str, Float[Tensor, " b"]]:
        """Per-row losses of a model at the given times in [0, 1] and noise.

        The arguments are those of `GaussianDiffusion.training_loss`.

        Returns:
            "loss" and, named as for diffusion, "mse": both the squared error of the velocity.

        Raises:
            ValueError: a model that also predicts a variance, which a flow has not.
        """
        x0, noise = x0.float(), noise.float()
        share = t.float().view(-1, 1, 1, 1, 1)
        output = model_fn(torch.lerp(x0, noise, share), UNITS * t).float()
        if output.shape[1] != x0.shape[1]:
            raise ValueError(
                f"flow: the model gave {output.shape[1]} channels for latents of {x0.shape[1]}; it "
                "must give as many. Set learn_sigma to false: a flow has no variance."
            )
        mse = frame_mean((noise - x0 - output).square(), frame_weight)
        return {"loss": mse, "mse": mse}

    def exact_prediction(self, x0: Latents, x_t: Latents, t: Tensor, start: Latents) -> Latents:
        """The velocity of a model that knows `x0`, along the path that began at `start`."""
        return start.float() - x0.float()


def integrate(
    model_fn: ModelFn | GuidanceInterval,
    start: Latents,
    steps: int,
    *,
    method: Literal["euler", "heun"],
) -> Latents:
    """Follow the flow from noise (t = 1) to data (t = 0) in equal steps.

    Args:
        model_fn: The model with labels and guidance bound.
        start: Standard normal noise.
        steps: Their number. Heun calls the model twice in each.
        method: Euler's method (first order) or Heun's (second order).

    Returns:
        Latents, float32.
    """
    x = start.float()

    def velocity(x: Tensor, time: float) -> Tensor:
        t = torch.full((len(x),), UNITS * time, device=x.device)
        return model_at(model_fn, UNITS * time)(x, t).float()

    for i in range(steps):
        now, then = 1 - i / steps, 1 - (i + 1) / steps
        slope = velocity(x, now)
        moved = x + (then - now) * slope
        if method == "heun":
            moved = x + (then - now) * (slope + velocity(moved, then)) / 2
        x = moved
    return x
