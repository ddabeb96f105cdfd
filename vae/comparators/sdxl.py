"""SDXL's image VAE (Podell et al. 2023), frame by frame: the spatial half of Open-Sora v1.2."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vae.comparators.blocks import (
    Downsample,
    FrameConv2d,
    FrameNorm,
    Layers,
    ResidualBlock,
    SpatialAttention,
    Upsample,
    sd_halves,
)

EPS = 1e-6
Z_DIM = 4
"""Latent channels."""

# Names of diffusers -> ours, applied in order.
_RENAMES = [
    (r"\.down_blocks\.(\d)\.", r".down.\1."),
    (r"\.up_blocks\.(\d)\.", lambda m: f".up.{3 - int(m[1])}."),
    (r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.resnets\.", ".block."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
]


class SDXLVAE(nn.Module):
    """An image VAE of every frame on its own; latents are raw."""

    def __init__(self, widths: Sequence[int], *, num_blocks: int, norm_groups: int):
        """`widths`: channels per level; `num_blocks` per encoder level."""
        super().__init__()
        norm = partial(FrameNorm, norm_groups, eps=EPS)
        pointwise = partial(FrameConv2d, kernel=1)

        def block(level: int, in_channels: int, out_channels: int) -> nn.Module:
            return ResidualBlock(
                in_channels, out_channels, norm=norm, conv=FrameConv2d, shortcut=pointwise
            )

        encoder = Layers(
            norm=norm,
            conv_in=FrameConv2d,
            conv_out=FrameConv2d,
            block=block,
            attention=partial(SpatialAttention, norm=norm, conv=pointwise),
            resample=_downsample,
        )
        decoder = replace(encoder, resample=_upsample)
        self.encoder, self.decoder = sd_halves(
            encoder, decoder, widths, num_blocks=num_blocks, z_dim=Z_DIM
        )
        self.quant_conv = FrameConv2d(2 * Z_DIM, 2 * Z_DIM, 1)
        self.post_quant_conv = FrameConv2d(Z_DIM, Z_DIM, 1)

    def encode(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z t h w"]:
        """The mean of the posterior."""
        return self.quant_conv(self.encoder(x))[:, :Z_DIM]

    def decode(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """The frames of latents."""
        return self.decoder(self.post_quant_conv(z))


def from_diffusers_names(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Our names for those of diffusers' AutoencoderKL after `prefix`, and 1x1 kernels for the
    matrices of attention; everything else stays.
    """
    ours = {}
    for key, value in state.items():
        if key.startswith(prefix):
            for pattern, replacement in _RENAMES:
                key = re.sub(pattern, replacement, key)
            if ".attn_1." in key and value.ndim == 2:
                value = value[:, :, None, None]
        ours[key] = value
    return ours


def _downsample(level: int, channels: int) -> nn.Module:
    return Downsample(FrameConv2d(channels, channels, stride=2, margin=0))


def _upsample(level: int, channels: int) -> nn.Module:
    return Upsample(FrameConv2d(channels, channels))
