"""CV-VAE (Zhao et al. 2024): an SD VAE with half of its convolutions in 3D, causal encoder."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.published_weights import COMPARATORS as PUBLISHED
from common.weights import read_state_dict
from vae.comparators import official
from vae.comparators.base import Comparator, SDConfig, Tiles, Windows
from vae.comparators.blocks import (
    Downsample,
    FrameConv2d,
    FrameNorm,
    Layers,
    PaddedConv3d,
    ResidualBlock,
    SpatialAttention,
    Upsample,
    sd_halves,
)

EPS = 1e-5
FLAGS = {
    "half_3d": True,
    "causal_encoder": True,
    "causal_decoder": False,
    "time_n_compress": 4,
    "spatial_n_compress": 8,
}
"""What config.json says of the version that this is; what else may differ shows in the keys."""


@dataclass(frozen=True, kw_only=True)
class CVVAEConfig(SDConfig):
    """Sizes of a CV-VAE; the defaults are the published one."""


class CVVAE(Comparator):
    """CV-VAE: compresses 1 + 4n frames by 4 x 8 x 8. The decoder is not causal."""

    config_class = CVVAEConfig
    published = PUBLISHED["cv_vae"]
    title = published.name
    native_window = 17
    encode_windows = Windows(length=17, overlap=1)
    decode_windows = Windows(length=5, overlap=1)
    tiles = Tiles(size=576, overlap=128)

    def __init__(self, config: CVVAEConfig):
        super().__init__(config)
        groups = config.norm_groups
        causal = partial(PaddedConv3d, front=2, fill="repeat")
        centered = partial(PaddedConv3d, front=1, back=1)
        self.encoder, self.decoder = sd_halves(
            _layers(causal, _attention(SpatialAttention, groups), _downsample, groups),
            _layers(centered, _attention(SpatialTemporalAttention, groups), _upsample, groups),
            config.widths,
            num_blocks=config.num_blocks,
            z_dim=config.z_dim,
        )
        self.reset_parameters()

    @classmethod
    def from_official(cls, source: str | Path, **options: Any) -> Self:
        names = ("diffusion_pytorch_model.safetensors", "model.safetensors")
        names = (*names, *(f"vae3d/{name}" for name in names))
        path, given = official.find(source, names, cls.published, **options)
        official.check_flags(path, given, FLAGS)
        state = read_state_dict(path)
        dim, multipliers = official.widths(path, state, "encoder.down.{}.block.0.conv1.weight")
        z_dim = official.size(path, state, "decoder.conv_in.weight", 1)
        model = cls(CVVAEConfig(dim=dim, channel_multipliers=multipliers, z_dim=z_dim))
        official.load(model, state, path, cls.title)
        return model.eval()

    def moments(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        return self.encoder(x)

    def frames(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b 3 t h w"]:
        return self.decoder(z)


class SpatialTemporalAttention(SpatialAttention):
    """Attention over each frame's positions, then over the frames at each position."""

    end = "proj_out_t"

    def __init__(self, channels: int, **options: Any):
        super().__init__(channels, **options)
        self.q_t = nn.Linear(channels, channels)
        self.k_t = nn.Linear(channels, channels)
        self.v_t = nn.Linear(channels, channels)
        self.proj_out_t = nn.Linear(channels, channels)
        self.norm_t = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, h, _ = x.shape
        y = rearrange(self.attend(x), "b c t h w -> (b h w) 1 t c")  # without residual
        y = self.norm_t(y)
        y = F.scaled_dot_product_attention(self.q_t(y), self.k_t(y), self.v_t(y))
        return x + rearrange(self.proj_out_t(y), "(b h w) 1 t c -> b c t h w", b=b, h=h)


class SpatialUpsample(Upsample):
    """Twice the height and width; the first and last frame repeated for the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t 2h 2w`."""
        return super().forward(torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2))


class SplitUpsample(SpatialUpsample):
    """Twice the height and width; in time each frame becomes two, and the first is dropped."""

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c 2t-1 2h 2w`."""
        return rearrange(super().forward(x), "b (k c) t h w -> b c (t k) h w", k=2)[:, :, 1:]


def _layers(conv: Any, attention: Any, resample: Any, groups: int) -> Layers:
    norm = partial(nn.GroupNorm, groups, eps=EPS)

    def block(level: int, in_channels: int, out_channels: int) -> nn.Module:
        shortcut = partial(PaddedConv3d, kernel=1)
        return ResidualBlock(
            in_channels, out_channels, norm=norm, conv=conv, conv2=FrameConv2d, shortcut=shortcut
        )

    return Layers(
        norm=norm, conv_in=conv, conv_out=conv, block=block, attention=attention, resample=resample
    )


def _attention(kind: type[SpatialAttention], groups: int) -> Any:
    return partial(
        kind, norm=partial(FrameNorm, groups, eps=EPS), conv=partial(FrameConv2d, kernel=1)
    )


def _downsample(level: int, channels: int) -> nn.Module:
    stride = (1, 2, 2) if level == 1 else (2, 2, 2)
    return Downsample(
        PaddedConv3d(channels, channels, front=2, fill="repeat", margin=0, stride=stride)
    )


def _upsample(level: int, channels: int) -> nn.Module:
    if level == 2:
        return SpatialUpsample(PaddedConv3d(channels, channels))
    return SplitUpsample(PaddedConv3d(channels, 2 * channels))
