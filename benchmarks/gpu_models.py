"""Where the checks of `benchmarks.gpu_acceptance` run, and on what: models, clips, distances."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.shared import clock, scrambled, seconds_in_turns
from latte import Latte, LatteConfig
from latte.config import PRESETS
from latte.diffusion import GaussianDiffusion
from latte.flow import RectifiedFlow
from latte.samplers import FLOW_METHODS, SamplerConfig, sample
from vae import VAEConfig, VideoVAE

Method = Literal["ddpm", "ddim", "dpm_solver", "euler", "heun"]


@dataclass(frozen=True)
class Machine:
    """Where the checks run."""

    device: torch.device
    folder: Path
    """For what the commands write."""

    @property
    def is_tiny(self) -> bool:
        """On a CPU everything is tiny: it shows that the checks work, and no speed."""
        return self.device.type == "cpu"


def make_vae(machine: Machine, *, dim: int, z_dim: int = 4) -> VideoVAE:
    """A VAE whose residual branches do not start at zero, so that every path counts."""
    torch.manual_seed(0)
    config = VAEConfig(z_dim=z_dim, dim=dim)
    if machine.is_tiny:
        config = VAEConfig(z_dim=z_dim, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
    return scrambled(VideoVAE(config)).eval().to(machine.device)


def make_latte(
    machine: Machine,
    size: str,
    frames: int = 3,
    side: int = 8,
    *,
    learn_sigma: bool = True,
    num_classes: int | None = None,
) -> Latte:
    """Likewise, a Latte."""
    torch.manual_seed(0)
    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 2} if machine.is_tiny else PRESETS[size]
    side = 8 if machine.is_tiny else side
    shape = {"in_channels": 4, "num_frames": frames, "height": side, "width": side}
    options = {"learn_sigma": learn_sigma, "num_classes": num_classes}
    config = LatteConfig(**options, **shape, **sizes)  # type: ignore[arg-type]
    return scrambled(Latte(config)).eval().to(machine.device)


def video(machine: Machine, frames: int, height: int, width: int) -> Tensor:
    """Uniform noise in [-1, 1], on the CPU; smaller where everything is tiny."""
    if machine.is_tiny and height != 224:
        frames, height, width = min(frames, 5), min(height, 64), min(width, 64)
    return torch.rand(1, 3, frames, height, width) * 2 - 1


def distance(
    machine: Machine, model: nn.Module, call: Callable[[Any, Tensor], Tensor], x: Tensor
) -> float:
    """Of the device's result from the CPU's, relative to its norm."""
    with torch.no_grad() if call is not gradients else torch.enable_grad():
        expected = call(model.cpu(), x)
        result = call(model.to(machine.device), x.to(machine.device))
    return relative(result.cpu(), expected)


def gradients(model: VideoVAE, x: Tensor) -> Tensor:
    """All gradients of the squared error, as one vector."""
    model.zero_grad(set_to_none=True)
    y, posterior = model(x, x.new_zeros(1))
    ((y - x).square().mean() + 1e-3 * posterior.kl().mean()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def draw(model: Latte, x: Tensor, method: Method) -> Tensor:
    """Four steps of a sampler, with guidance where there are classes."""
    process = RectifiedFlow() if method in FLOW_METHODS else GaussianDiffusion()
    labels = None if model.config.num_classes is None else [0, 1]
    config = SamplerConfig(method=method, steps=4, guidance=1 if labels is None else 4)
    return sample(model, process, config, indices=range(2), labels=labels, seed=0)


def relative(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    value, expected = value.float(), expected.float()
    return ((value - expected).norm() / expected.norm()).item()


def seconds(call: Callable[[], Any], machine: Machine, repeats: int = 3) -> float:
    """The shortest of several calls, after one that warms up."""
    call()
    repeats = 1 if machine.is_tiny else repeats + 1
    (runs,) = seconds_in_turns([call], repeats, lambda: clock(machine.device))
    return min(runs)
