"""VAEs small enough for tests, and videos for them."""

from typing import TypeVar

import torch

from vae import VAEConfig, VideoVAE

Model = TypeVar("Model", bound=VideoVAE)
TINY = VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 2, 2, 2), num_blocks=1)
LONG = VAEConfig(
    z_dim=32,
    dim=4,
    channel_multipliers=(1, 1, 2, 2),
    num_blocks=1,
    temporal_downsample=(True, True, True),
)
"""The paper's future work: 32 latent channels, 8x in time."""


def tiny(preset: str, **changes) -> VAEConfig:
    """A preset with few channels and one block a level."""
    size = {"z_dim": 4, "dim": 4, "channel_multipliers": (1, 1, 1, 1), "num_blocks": 1}
    return VAEConfig.preset(preset, **{**size, **changes})


def scramble(model: Model) -> Model:
    """Move every weight a little, so that residual branches no longer start at zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def make(config: VAEConfig = TINY) -> VideoVAE:
    """In float64, with random weights."""
    return scramble(VideoVAE(config)).double().eval()


def video(t: int, h: int = 16, w: int = 24, b: int = 1, seed: int = 1) -> torch.Tensor:
    """Random pixels, b 3 t h w in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(b, 3, t, h, w, generator=generator, dtype=torch.float64) * 2 - 1
