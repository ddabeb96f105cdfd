"""A 3D PatchGAN: says of every patch of a video whether it looks real."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le, MultipleOf
from jaxtyping import Float
from torch import Tensor, nn

from common.config import Config, Width
from common.conv3d import Conv3d

NORM_GROUPS = 16
SLOPE = 0.2  # of the leaky ReLU
STD = 0.02  # of initial weights; Isola et al. 2017


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(Config):
    """Size of the discriminator. Ours: the paper says only that it is 3D."""

    channels: Annotated[Width, MultipleOf(NORM_GROUPS)] = 64
    """Channels of the first layer; they double per layer, up to 8 times."""
    layers: Annotated[int, Ge(1), Le(16)] = 3
    """Layers that halve height and width; all but the first also halve the frames. With 3 a logit
    sees 25 frames of 70 x 70 pixels, as in a PatchGAN."""

    @property
    def min_size(self) -> int:
        """Least height and width of a clip, pixels: the two last layers take a row each."""
        return 3 * 2**self.layers

    @property
    def strides(self) -> list[tuple[int, int]]:
        """(time, space) of each convolution; the last gives the logits."""
        return [(1 if i == 0 else 2, 2) for i in range(self.layers)] + [(1, 1), (1, 1)]

    def check(self, height: int, width: int) -> None:
        """Raise a ValueError for clips that are too small for the number of layers."""
        if min(height, width) < self.min_size:
            deepest = max(1, (min(height, width) // 3).bit_length() - 1)
            raise ValueError(
                f"a discriminator of {self.layers} layers needs clips of at least "
                f"{self.min_size} x {self.min_size}, got {height} x {width}. "
                f"Use at most {deepest} layers, or larger clips."
            )


class Discriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) over time and space: `b 3 t h w` -> one logit per patch.

    Convolutions of 3 x 4 x 4, group normalization (no statistics across clips, so micro-batches and
    processes do not matter) and leaky ReLU. Any number of frames, one included. With 3 layers a
    clip of 17 x 256 x 256 gives 5 x 30 x 30 logits, each of which sees 70 x 70 pixels
    of all frames (of up to 25).
    """

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        width = 3
        for i, (time, space) in enumerate(config.strides):
            last = i == len(config.strides) - 1
            out = 1 if last else config.channels * min(2**i, 8)
            layers.append(Conv3d(width, out, (3, 4, 4), (time, space, space), padding=1))
            nn.init.normal_(layers[-1].weight, std=STD)  # type: ignore[arg-type]
            nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
            if i > 0 and not last:
                layers.append(nn.GroupNorm(NORM_GROUPS, out))
            if not last:
                layers.append(nn.LeakyReLU(SLOPE))
            width = out
        self.layers = nn.Sequential(*layers)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 1 t2 h2 w2"]:
        """Logits; above zero means real. Raises: ValueError if the video is too small."""
        self.config.check(*video.shape[-2:])
        if video.is_cuda:  # the layout of tensor cores; oneDNN has its own
            video = video.contiguous(memory_format=torch.channels_last_3d)
        return self.layers(video)
