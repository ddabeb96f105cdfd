"""The VAE of Open-Sora v1.2: SDXL's image VAE per frame, and a VAE over time on its latents."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from vae.comparators.base import Comparator, ComparatorConfig, Windows, check_widths
from vae.comparators.blocks import Named, PaddedConv3d, ResidualBlock
from vae.comparators.sdxl import SDXLVAE, Z_DIM, from_diffusers_names
from vae.config import Count, LatentStd

EPS = 1e-5
SPATIAL_SCALE = 0.18215
"""Of the image VAE's latents; SD's, although the VAE is SDXL's."""
PREFIX = "spatial_vae.module."
"""Of the image VAE's official keys; ours have no `module`."""
FRAME_WINDOWS, LATENT_WINDOWS = Windows(length=17), Windows(length=5)
"""Of the official inference; each is filled up in front on its own."""


@dataclass(frozen=True, kw_only=True)
class OpenSoraConfig(ComparatorConfig):
    """Sizes of an Open-Sora v1.2 VAE; the defaults are the published one."""

    latent_mean: tuple[float, ...] = (-0.10, 0.34, 0.27, 0.98)
    """Mean of the latents, per channel: the official shift."""
    latent_std: LatentStd = (3.85, 2.32, 2.33, 3.06)
    """Standard deviation of the latents, per channel: the official scale."""
    spatial_dim: Count = 128
    """Channels of the image VAE's first level."""
    spatial_multipliers: tuple[Count, ...] = (1, 2, 4, 4)
    """Its channels per level in units of spatial_dim."""
    spatial_blocks: Count = 2
    """Its residual blocks per encoder level; a decoder level has one more."""
    temporal_dim: Count = 128
    """Channels of the temporal VAE's first level."""
    temporal_multipliers: tuple[Count, ...] = (1, 2, 2, 4)
    """Its channels per level in units of temporal_dim."""
    temporal_blocks: Count = 4
    """Its residual blocks per level, and in the middle."""
    norm_groups: Count = 32
    """Groups of the norms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = self.norm_groups
        check_widths("spatial", self.spatial_dim, self.spatial_multipliers, groups)
        check_widths("temporal", self.temporal_dim, self.temporal_multipliers, groups)

    def check_frames(self, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"{frames} frames, but the VAE needs at least 1. Use 1.")

    def valid_frames(self, frames: int) -> int:
        return max(1, frames)

    def latent_frames(self, frames: int) -> int:
        if self.windows == "single":
            return -(-frames // self.temporal_ratio)
        whole, rest = divmod(frames, FRAME_WINDOWS.length)
        return whole * LATENT_WINDOWS.length - (-rest // self.temporal_ratio)

    def decoded_frames(self, latent_frames: int) -> int:
        if self.windows == "single":
            return super().decoded_frames(latent_frames)
        whole, rest = divmod(latent_frames, LATENT_WINDOWS.length)
        last = super().decoded_frames(rest) if rest else 0
        return whole * FRAME_WINDOWS.length + last


class OpenSoraVAE(Comparator):
    """The VAE of Open-Sora v1.2: compresses any number of frames by 4 x 8 x 8.

    A number that 4 does not divide is filled up in front, so `decode` without `size` gives 1 + 4n
    frames. The image VAE hands over the mean of its posterior, where the official code draws from
    it.
    """

    config_class = OpenSoraConfig
    published = PUBLISHED["opensora_v12"]
    title = published.name
    native_window = 17
    encoder_modules = (
        "spatial_vae.encoder",
        "spatial_vae.quant_conv",
        "temporal_vae.encoder",
        "temporal_vae.quant_conv",
    )
    last_module = "spatial_vae.decoder.conv_out"

    def __init__(self, config: OpenSoraConfig):
        super().__init__(config)
        self.spatial_vae = SDXLVAE(
            [config.spatial_dim * m for m in config.spatial_multipliers],
            num_blocks=config.spatial_blocks,
            norm_groups=config.norm_groups,
        )
        self.temporal_vae = TemporalVAE(config)
        self.reset_parameters()

    @classmethod
    def from_official(cls, source: str | Path, **options: Any) -> Self:
        path, _ = official.find(source, ("model.safetensors",), cls.published, **options)
        state = read_state_dict(path)
        model = cls(_config(path, state))
        official.load(model, from_official_names(state), path, cls.title)
        return model.eval()

    def moments(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        return self.temporal_vae.moments(self.spatial_vae.encode(x) * SPATIAL_SCALE)

    def frames(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b 3 t h w"]:
        return self.spatial_vae.decode(self.temporal_vae.decode(z, count) / SPATIAL_SCALE)

    def moments_in_windows(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        return FRAME_WINDOWS.run(self.moments, x)

    def frames_in_windows(
        self, z: Float[Tensor, "b z t h w"], count: int
    ) -> Float[Tensor, "b 3 t h w"]:
        spans = zip(LATENT_WINDOWS.spans(z.shape[2]), FRAME_WINDOWS.spans(count), strict=True)
        parts = [
            self.frames(z[:, :, latents], len(range(count)[frames])) for latents, frames in spans
        ]
        return torch.cat(parts, dim=2)


class TemporalVAE(nn.Module):
    """A VAE over time on the image VAE's latents; 4 frames become 1, height and width stay."""

    def __init__(self, config: OpenSoraConfig):
        super().__init__()
        z = config.z_dim
        self.encoder = TemporalEncoder(config)
        self.decoder = TemporalDecoder(config)
        self.quant_conv = _causal(2 * z, 2 * z, 1)
        self.post_quant_conv = _causal(z, z, 1)

    def moments(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b z2 t h w"]:
        """[mean | log-variance]; frames of zeros come first where 4 does not divide t."""
        return self.quant_conv(self.encoder(F.pad(x, (0, 0, 0, 0, -x.shape[2] % 4, 0))))

    def decode(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b c t h w"]:
        """The last `count` frames."""
        return self.decoder(self.post_quant_conv(z))[:, :, -count % 4 :]


class TemporalEncoder(nn.Module):
    """Frames are halved after levels 1 and 2."""

    def __init__(self, config: OpenSoraConfig):
        super().__init__()
        widths = [config.temporal_dim * m for m in config.temporal_multipliers]
        self.conv_in = _causal(Z_DIM, widths[0], bias=False)
        before = [widths[0], *widths[:-1]]
        self.block_res_blocks = nn.ModuleList(
            _blocks(config, c, width) for c, width in zip(before, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleDict(
            {str(level): _causal(widths[level], widths[level], time_stride=2) for level in (1, 2)}
        )
        self.res_blocks = _blocks(config, widths[-1], widths[-1])
        self.norm1 = _temporal_norm(config, widths[-1])
        self.conv2 = _causal(widths[-1], 2 * config.z_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Latents of the image VAE, `b 4 t h w` -> [mean | log-variance], `b 2z t/4 h w`."""
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            x = blocks(x)
            if str(level) in self.conv_blocks:
                x = self.conv_blocks[str(level)](x)
        return self.conv2(F.silu(self.norm1(self.res_blocks(x))))


class TemporalDecoder(nn.Module):
    """Frames are doubled after levels 3 and 2."""

    def __init__(self, config: OpenSoraConfig):
        super().__init__()
        widths = [config.temporal_dim * m for m in config.temporal_multipliers]
        self.conv1 = _causal(config.z_dim, widths[-1])
        self.res_blocks = _blocks(config, widths[-1], widths[-1])
        before = [*widths[1:], widths[-1]]
        self.block_res_blocks = nn.ModuleList(
            _blocks(config, c, width) for c, width in zip(before, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleDict(
            {str(level - 1): _causal(widths[level], 2 * widths[level]) for level in (2, 3)}
        )
        self.norm1 = _temporal_norm(config, widths[0])
        self.conv_out = _causal(widths[0], Z_DIM)

    def forward(self, z: Tensor) -> Tensor:
        """`b z t h w` -> latents of the image VAE, `b 4 4t h w`."""
        x = self.res_blocks(self.conv1(z))
        for level in reversed(range(len(self.block_res_blocks))):
            x = self.block_res_blocks[level](x)
            if str(level - 1) in self.conv_blocks:
                x = self.conv_blocks[str(level - 1)](x)
                x = rearrange(x, "b (c s) t h w -> b c (t s) h w", s=2)
        return self.conv_out(F.silu(self.norm1(x)))


def from_official_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Our names of official weights, without `shift` and `scale`, which are in the config."""
    named = from_diffusers_names(state, PREFIX)
    return {
        name.replace(PREFIX, "spatial_vae."): value
        for name, value in named.items()
        if name not in ("shift", "scale")
    }


def _config(path: Path, state: Mapping[str, Any]) -> OpenSoraConfig:
    spatial, spatial_multipliers = official.widths(
        path, state, PREFIX + "encoder.down_blocks.{}.resnets.0.conv1.weight"
    )
    temporal, temporal_multipliers = official.widths(
        path, state, "temporal_vae.encoder.block_res_blocks.{}.0.conv1.conv.weight"
    )
    config = OpenSoraConfig(
        spatial_dim=spatial,
        spatial_multipliers=spatial_multipliers,
        temporal_dim=temporal,
        temporal_multipliers=temporal_multipliers,
    )
    for field, name in (("latent_mean", "shift"), ("latent_std", "scale")):
        if name in state:
            config = replace(config, **{field: tuple(state[name].flatten().tolist())})
    return config


def _causal(
    in_channels: int, out_channels: int, kernel: int = 3, *, time_stride: int = 1, bias: bool = True
) -> nn.Module:
    """Frames of zeros in front only."""
    front, stride = kernel - time_stride, (time_stride, 1, 1)
    conv = PaddedConv3d(in_channels, out_channels, kernel, front=front, stride=stride, bias=bias)
    return Named(conv)


def _temporal_norm(config: OpenSoraConfig, channels: int) -> nn.Module:
    return nn.GroupNorm(config.norm_groups, channels, eps=EPS)


def _blocks(config: OpenSoraConfig, in_channels: int, out_channels: int) -> nn.Sequential:
    conv = partial(_causal, bias=False)
    return nn.Sequential(
        *(
            ResidualBlock(
                in_channels if i == 0 else out_channels,
                out_channels,
                norm=partial(_temporal_norm, config),
                conv=conv,
                shortcut=partial(conv, kernel=1),
                shortcut_name="conv3",
            )
            for i in range(config.temporal_blocks)
        )
    )
