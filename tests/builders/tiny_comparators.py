"""Comparators small enough for tests, and how far two tensors are from each other."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from tests.builders.vectors import uniform
from vae import VAEConfig
from vae.base import VideoAutoencoder
from vae.comparators.base import Comparator
from vae.registry import OTHERS, comparator_config

LIKE = VAEConfig(z_dim=4, dim=4, num_blocks=1)
LIMIT = 1e-4
"""Of the distance to the reference vectors. In float64 ours is 3.4e-5 from them where inputs are
smallest: that much is the reference's own rounding, and ours in float32 adds 2e-5 or more to it."""


def video(frames: int, *, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    return uniform(seed, (1, 3, frames, height, width))


def untrained(name: str, like: VAEConfig = LIKE) -> Comparator:
    return OTHERS[name](comparator_config(name, like))


def tiny(name: str, **changes) -> Comparator:
    """With random weights of which none is zero."""
    torch.manual_seed(0)
    model = untrained(name)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    model.config = replace(model.config, **changes)
    return model.eval()


def smallest(model: VideoAutoencoder) -> tuple[int, int, int]:
    """Frames, height and width of a clip with 2 x 3 latent positions and more than one frame."""
    side = model.config.spatial_ratio
    return model.config.valid_frames(9), 2 * side, 3 * side


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()
