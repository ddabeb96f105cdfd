"""What a comparator costs, counted without weights."""

from typing import Any

import torch
from torch import Tensor, nn

from vae.comparators.base import Comparator, ComparatorConfig
from vae.comparators.blocks import SpatialAttention
from vae.comparators.cv_vae import SpatialTemporalAttention
from vae.complexity import Macs


def count_parameters(kind: type[Comparator], config: ComparatorConfig) -> int:
    """Number of weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in kind(config).parameters())


def count_macs(
    kind: type[Comparator], config: ComparatorConfig, frames: int, height: int, width: int
) -> tuple[Macs, Macs]:
    """(encoder, decoder) for one video of this size, as one window; nothing is computed.

    Every weight once for every output position, padding included; linear layers count as
    convolutions.

    Raises:
        ValueError: a size that the VAE does not take.
    """
    latent = config.latent_shape(frames, height, width)
    with torch.device("meta"):
        model = kind(config)
        video, z = torch.empty(1, 3, frames, height, width), torch.empty(1, *latent)
    with torch.no_grad():
        return (
            _count(model, lambda: model.moments(video)),
            _count(model, lambda: model.frames(z, frames)),
        )


def _count(model: nn.Module, call: Any) -> Macs:
    counts = {"convolution": 0, "attention": 0}

    def convolution(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        weight: Any = module.weight
        counts["convolution"] += y.numel() // weight.shape[0] * weight.numel()

    def attention(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        b, c, t, h, w = y.shape
        counts["attention"] += 2 * b * t * c * (h * w) ** 2
        if isinstance(module, SpatialTemporalAttention):
            counts["attention"] += 2 * b * h * w * c * t**2

    handles = [
        module.register_forward_hook(hook)
        for module in model.modules()
        for kinds, hook in (
            ((nn.Conv2d, nn.Conv3d, nn.Linear), convolution),
            ((SpatialAttention,), attention),
        )
        if isinstance(module, kinds)
    ]
    call()
    for handle in handles:
        handle.remove()
    return Macs(**counts)
