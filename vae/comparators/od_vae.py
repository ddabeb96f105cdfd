"""OD-VAE as in Open-Sora-Plan v1.2 (Chen et al. 2024), and with group causal convolutions.

The configuration is a reconstruction: the official config file was not seen.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
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
    GroupCausalConv3d,
    Layers,
    Named,
    PaddedConv3d,
    ResidualBlock,
    SpatialAttention,
    Upsample,
    sd_halves,
)

log = logging.getLogger(__name__)

EPS = 1e-6
GROUPS = (4, 4, 2, 1)
"""Frames of a frame group at each level."""
FLAGS = {
    "encoder_attention": "AttnBlock3DFix",
    "decoder_attention": "AttnBlock3DFix",
    "encoder_spatial_downsample": [
        "Downsample",
        "Spatial2xTime2x3DDownsample",
        "Spatial2xTime2x3DDownsample",
        "",
    ],
    "decoder_spatial_upsample": [
        "",
        "SpatialUpsample2x",
        "Spatial2xTime2x3DUpsample",
        "Spatial2xTime2x3DUpsample",
    ],
}
"""What config.json says of the version that this is; what else may differ shows in the keys. The
older AttnBlock3D has the same keys but mixes channels with frames."""


@dataclass(frozen=True, kw_only=True)
class ODVAEConfig(SDConfig):
    """Sizes of an OD-VAE; the defaults are the published one."""

    temporal: Literal["causal", "group_causal"] = "causal"
    """How convolutions join frames: backward only, or inside a frame group in both directions
    (`to_group_causal`)."""


class ODVAE(Comparator):
    """OD-VAE: compresses 1 + 4n frames by 4 x 8 x 8."""

    config_class = ODVAEConfig
    published = PUBLISHED["od_vae"]
    title = published.name
    native_window = 33
    encode_windows = Windows(length=33, overlap=1)
    decode_windows = Windows(length=16, overlap=1)
    tiles = Tiles(size=256, overlap=32)

    def __init__(self, config: ODVAEConfig):
        super().__init__(config)
        z = config.z_dim
        self.encoder, self.decoder = sd_halves(
            *_halves(config), config.widths, num_blocks=config.num_blocks, z_dim=z
        )
        self.quant_conv = _pointwise(2 * z, 2 * z)
        self.post_quant_conv = _pointwise(z, z)
        self.reset_parameters()

    @classmethod
    def from_official(cls, source: str | Path, **options: Any) -> Self:
        names = ("checkpoint.ckpt", "vae/checkpoint.ckpt")
        path, given = official.find(source, names, cls.published, **options)
        official.check_flags(path, given, FLAGS)
        state = averaged(read_state_dict(path), path)
        dim = official.size(path, state, "encoder.conv_in.weight", 0)
        deep = [
            official.size(path, state, f"encoder.down.{level}.block.0.conv1{inner}.weight", 0)
            for level, inner in enumerate(("", "", ".conv", ".conv"))
        ]
        multipliers = tuple(width // dim for width in deep)
        z_dim = official.size(path, state, "decoder.conv_in.conv.weight", 1)
        model = cls(ODVAEConfig(dim=dim, channel_multipliers=multipliers, z_dim=z_dim))
        official.load(model, state, path, cls.title)
        return model.eval()

    def moments(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        return self.quant_conv(self.encoder(x))

    def frames(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b 3 t h w"]:
        return self.decoder(self.post_quant_conv(z))


def to_group_causal(model: ODVAE) -> ODVAE:
    """The same weights with all causal convolutions replaced by group causal ones (supplement,
    "Applying GCConv to OD-VAE"), for fine-tuning.

    What changes at replacement, for the same weights, which read three frames in time:

    - without temporal stride: the taps that read frames (t-2, t-1, t) now read (t-1, t, t+1), so
      every frame of a group but the last sees the next one. The last frame of a group, all frames
      at latent resolution and the image frame have zeros there.
    - with temporal stride (the two downsamplers): a pair of frames is merged as before; only the
      image frame has a zero in place of its third copy.
    - kernels of one frame, norms, attention and upsampling: nothing. GroupNorm over time and the
      trilinear upsampling still join frames of different groups.

    So the reconstruction is wrong until the model is fine-tuned.
    """
    changed = ODVAE(replace(model.config, temporal="group_causal"))
    changed.load_state_dict(model.state_dict())
    convs = [m for m in changed.modules() if isinstance(m, GroupCausalConv3d)]
    counts = {g: sum(conv.group == g for conv in convs) for g in sorted(set(GROUPS), reverse=True)}
    log.info(
        "%d causal convolutions are group causal now (%s); the weights are the same, what they "
        "read is one frame later: fine-tune the model",
        len(convs),
        ", ".join(f"{n} with groups of {g}" for g, n in counts.items()),
    )
    weight = next(model.parameters())
    return changed.to(weight.device, weight.dtype).train(model.training)


class Double(Named):
    """Twice the height and width, and each frame but the first becomes two; trilinear.

    The first frame is interpolated on its own, the others as one block.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c 2t-1 2h 2w`."""
        parts = [F.interpolate(x[:, :, :1], scale_factor=(1, 2, 2), mode="trilinear")]
        if x.shape[2] > 1:
            parts.append(F.interpolate(x[:, :, 1:], scale_factor=(2, 2, 2), mode="trilinear"))
        return self.conv(torch.cat(parts, dim=2))


def _halves(config: ODVAEConfig) -> tuple[Layers, Layers]:
    """The layers of encoder and decoder."""
    norm = partial(nn.GroupNorm, config.norm_groups, eps=EPS)

    def temporal(level: int, in_channels: int, out_channels: int, **options: Any) -> nn.Module:
        """A causal or group causal convolution over three frames."""
        if config.temporal == "group_causal":
            group = GROUPS[level]
            return Named(GroupCausalConv3d(in_channels, out_channels, group=group, **options))
        return Named(PaddedConv3d(in_channels, out_channels, front=2, fill="repeat", **options))

    def block(level: int, in_channels: int, out_channels: int) -> nn.Module:
        conv = partial(temporal, level)
        return ResidualBlock(in_channels, out_channels, norm=norm, conv=conv, shortcut=_pointwise)

    def encoder_block(level: int, in_channels: int, out_channels: int) -> nn.Module:
        if level > 1:
            return block(level, in_channels, out_channels)
        return ResidualBlock(
            in_channels,
            out_channels,
            norm=partial(FrameNorm, config.norm_groups, eps=EPS),
            conv=FrameConv2d,
            shortcut=partial(FrameConv2d, kernel=1),
        )

    def downsample(level: int, channels: int) -> nn.Module:
        if level == 0:
            return Downsample(FrameConv2d(channels, channels, stride=2, margin=0))
        return Downsample(temporal(level, channels, channels, margin=0, stride=(2, 2, 2)))

    def upsample(level: int, channels: int) -> nn.Module:
        if level == 1:
            return Upsample(Named(PaddedConv3d(channels, channels, (1, 3, 3))))
        return Double(temporal(level - 1, channels, channels))

    inner, outer = partial(temporal, 3), partial(temporal, 0)
    encoder = Layers(
        norm=norm,
        conv_in=FrameConv2d,
        conv_out=inner,
        block=encoder_block,
        attention=partial(SpatialAttention, norm=norm, conv=_pointwise),
        resample=downsample,
    )
    decoder = replace(encoder, conv_in=inner, conv_out=outer, block=block, resample=upsample)
    return encoder, decoder


def averaged(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The averaged weights of a training checkpoint if it has them, else the trained ones.

    Raises:
        ValueError: it holds neither.
    """
    if ema := state.get("ema_state_dict"):
        return {name.replace("module.", "", 1): value for name, value in ema.items()}
    inner = state.get("state_dict", state)
    inner = inner.get("gen_model", inner) if isinstance(inner, dict) else inner
    if not isinstance(inner, dict) or not inner:
        raise ValueError(
            f"{path}: holds neither ema_state_dict nor state_dict. Get that of "
            f"{PUBLISHED['od_vae'].source}"
        )
    return inner


def _pointwise(in_channels: int, out_channels: int) -> nn.Module:
    return Named(PaddedConv3d(in_channels, out_channels, 1))
