"""Videos of any size: repeat the edges up to a size that the VAE can divide, and crop back."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vae.config import VAEConfig

Size = tuple[int, int, int]
"""Frames, height, width."""


def size_of(x: Float[Tensor, "b c t h w"]) -> Size:
    """Frames, height and width."""
    t, h, w = x.shape[2:]
    return t, h, w


def decoded_size(z: Float[Tensor, "b z t h w"], config: VAEConfig) -> Size:
    """Frames, height and width of the video that a latent decodes to."""
    t, h, w = z.shape[2:]
    side = config.spatial_ratio
    return 1 + (t - 1) * config.temporal_ratio, h * side, w * side


def padded_size(size: Sequence[int], config: VAEConfig) -> Size:
    """The smallest allowed frames, height and width that are not below `size`."""
    t, h, w = size
    groups = -(-(t - 1) // config.temporal_ratio)
    side = config.spatial_ratio
    return 1 + groups * config.temporal_ratio, -(-h // side) * side, -(-w // side) * side


def pad(x: Float[Tensor, "b c t h w"], config: VAEConfig) -> Float[Tensor, "b c t2 h2 w2"]:
    """Repeat the last frame, the bottom row and the right column up to `padded_size`."""
    t, h, w = padded_size(size_of(x), config)
    if (t, h, w) == size_of(x):
        return x
    frames, bottom, right = t - x.shape[2], h - x.shape[3], w - x.shape[4]
    return F.pad(x, (0, right, 0, bottom, 0, frames), mode="replicate")


def check_crop(size: Sequence[int], padded: Size, config: VAEConfig) -> None:
    """Refuse a size (t, h, w) whose video `pad` would not bring to `padded`."""
    if len(size) != 3 or min(size) < 1 or padded_size(tuple(size), config) != padded:
        raise ValueError(
            f"size={tuple(size)} (t, h, w) cannot be cropped from a video of {padded}: give the "
            "size of the video that was encoded with pad=True"
        )


def crop(x: Float[Tensor, "b c t2 h2 w2"], size: Sequence[int]) -> Float[Tensor, "b c t h w"]:
    """Undo `pad`: the first `size` frames, rows and columns; a view."""
    t, h, w = size
    return x[:, :, :t, :h, :w]
