"""How many frame groups to run at once: as many as a share of the free memory holds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.measure import free_memory
from vae.config import VAEConfig
from vae.tiling import Tiling

MEMORY_FRACTION = 0.75
"""Share of the free memory that activations may take; the rest is for what convolutions need
besides, and for other processes."""
LIVE_MAPS = 10
"""How many of its largest feature maps the VAE holds at once, at most; tests measure it."""
MAX_ELEMENTS = 2**31 - 1
"""Of a tensor: kernels that index with 32 bits fail, or are wrong, beyond."""


def groups_that_fit(
    x: Tensor, size: Sequence[int], config: VAEConfig, tiling: Tiling | None = None
) -> int:
    """How many frame groups of a video fit into the free memory at once; at least 1.

    Args:
        x: the batch, video or latent, on whose device it runs, in x's type or that of autocast.
        size: the video's frames, height and width.
        config: of the VAE.
        tiling: the tiles it runs in.
    """
    t, h, w = size
    device, dtype = x.device, x.dtype
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    values = x.shape[0] * h * w  # of one channel of a frame
    video = 3 * t * values * x.element_size()
    budget = MEMORY_FRACTION * (free_memory(device) - video)
    if tiling is not None:
        h, w = min(tiling.height, h), min(tiling.width, w)
        values = x.shape[0] * h * w
    frames = budget / (values * dtype.itemsize) - 2 * kept_values(config)
    frames /= LIVE_MAPS * largest_map(config)
    enlarged = x.shape[0] * (h + 2) * (w + 2)  # enlarging computes a row and a column more
    frames = min(frames, MAX_ELEMENTS / (enlarged * largest_tensor(config)))
    groups = (t - 1) // config.temporal_ratio
    return max(1, min(groups, int((frames - 1) // config.temporal_ratio)))


def largest_tensor(config: VAEConfig) -> float:
    """Values per pixel of the video in the largest tensor, at most; tests measure it.

    A causal convolution computes both of its taps that read earlier frames at once, and the
    decoder's head all of its taps, of both branches.
    """
    taps = 2 if config.temporal == "causal" else 1
    return max(taps * largest_map(config), 12)


def largest_map(config: VAEConfig) -> float:
    """Values per pixel of the video in the largest feature map, e.g. 128 for dim 64.

    Upsampling brings half the channels of the level below to a level.
    """
    deeper = (*config.widths[1:], 0)
    return max(
        max(width, deeper[i] / 2) * config.group_sizes[i] / config.temporal_ratio / 4**i
        for i, width in enumerate(config.widths)
    )


def kept_values(config: VAEConfig) -> float:
    """Values per pixel of a frame that one chunk keeps for the next, at most."""
    if config.temporal_ratio == 1:
        return 0
    frames = 2 if config.temporal == "causal" else 1
    share = frames / 2 if config.branches == 2 and config.branch_convs == "2d3d" else frames
    convs = 2 * (config.num_blocks + 1) + 1  # of a decoder's level
    return share * convs * sum(width / 4**i for i, width in enumerate(config.widths))
