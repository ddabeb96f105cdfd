"""The VAEs that diffusers ships: a row of what differs for each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Arguments = Mapping[str, Any]
WHOLE = 1 << 30  # frames; more than any video has


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one model of diffusers differs in."""

    class_name: str
    """The class in diffusers."""
    export: str
    """Class name in exports of ours."""
    arguments: Arguments
    """Of the published one: all that its ratios and sizes depend on."""
    ratios: Callable[[Arguments], tuple[int, int]]
    """Frames and pixels per latent position."""
    z: str = "latent_channels"
    """Argument of the number of latent channels."""
    z_dim: int = 16
    """That of the published one."""
    widths: tuple[str, ...] = ("block_out_channels",)
    """Arguments of channels, which a smaller model scales."""
    multiple: int = 1
    """What divides all widths."""
    blocks: tuple[str, ...] = ("layers_per_block",)
    """Arguments of residual blocks per level."""
    groups: str | None = None
    """Argument of the norms' groups."""
    frame_step: int | None = None
    """A clip has 1 + frame_step n frames; None: the ratio of time."""
    image_first: bool = True
    """Whether the first latent frame stands for one frame; else for as many as the others."""
    flags: Arguments = field(default_factory=dict)
    """What config.json says of the version that this is."""
    native_window: int | None = None
    """As of `VideoAutoencoder`."""
    official: Arguments = field(default_factory=dict)
    """Attributes of the module to run as diffusers does, in its windows."""
    single: Arguments = field(default_factory=dict)
    """Attributes to run in a single window."""
    last: str = "conv_out"
    """Module that ends the decoder."""
    has_variance: bool = True
    """Whether the encoder gives a variance; else the posterior is a point."""
    repeats_first: bool = False
    """Whether the first frame is repeated in front to fill its group, which decoding takes off."""
    untiled: bool = False
    """Whether diffusers runs tiles alone; here a video runs whole."""


def _named(arguments: Arguments) -> tuple[int, int]:
    return arguments["temporal_compression_ratio"], arguments["spatial_compression_ratio"]


def _levels(time: str, levels: str) -> Callable[[Arguments], tuple[int, int]]:
    """Levels that halve time, among all, which halve space up to the last."""
    return lambda a: (2 ** sum(a[time]), 2 ** (len(a[levels]) - 1) * (a.get("patch_size") or 1))


def _ltx2(arguments: Arguments) -> tuple[int, int]:
    kinds = arguments["downsample_type"]
    space = sum(kind != "temporal" for kind in kinds)
    return 2 ** sum(kind != "spatial" for kind in kinds), arguments["patch_size"] * 2**space


WAN = Row(
    class_name="AutoencoderKLWan",
    export="WanVAE",
    arguments={
        "base_dim": 96,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
    },
    ratios=_levels("temperal_downsample", "dim_mult"),
    z="z_dim",
    widths=("base_dim",),
    blocks=("num_res_blocks",),
    flags={"is_residual": False, "patch_size": None},
)
ROWS: Mapping[str, Row] = {
    "cogvideox": Row(
        class_name="AutoencoderKLCogVideoX",
        export="CogVideoXVAE",
        arguments={
            "block_out_channels": [128, 256, 256, 512],
            "layers_per_block": 3,
            "norm_num_groups": 32,
            "temporal_compression_ratio": 4,
        },
        ratios=lambda a: (a["temporal_compression_ratio"], 2 ** (len(a["block_out_channels"]) - 1)),
        groups="norm_num_groups",
        # diffusers decodes an even number of latent frames to 4 frames each, and an odd one to 1
        # and 4 for each other; so only 1 + 8n frames come back as they were
        frame_step=8,
        flags={"use_quant_conv": False, "use_post_quant_conv": False},
        native_window=9,
        official={"num_sample_frames_batch_size": 8, "num_latent_frames_batch_size": 2},
        single={"num_sample_frames_batch_size": WHOLE, "num_latent_frames_batch_size": WHOLE},
    ),
    "wan": WAN,
    "wan22": replace(
        WAN,
        export="Wan22VAE",
        arguments={
            **WAN.arguments,
            "base_dim": 160,
            "decoder_base_dim": 256,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
        },
        z_dim=48,
        widths=("base_dim", "decoder_base_dim"),
        flags={"is_residual": True, "patch_size": 2},
    ),
    "hunyuan_video": Row(
        class_name="AutoencoderKLHunyuanVideo",
        export="HunyuanVideoVAE",
        arguments={
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "spatial_compression_ratio": 8,
            "temporal_compression_ratio": 4,
        },
        ratios=_named,
        groups="norm_num_groups",
        native_window=17,
        official={"use_framewise_encoding": True, "use_framewise_decoding": True},
        single={"use_framewise_encoding": False, "use_framewise_decoding": False},
    ),
    "hunyuan_video15": Row(
        class_name="AutoencoderKLHunyuanVideo15",
        export="HunyuanVideo15VAE",
        arguments={
            "block_out_channels": [128, 256, 512, 1024, 1024],
            "layers_per_block": 2,
            "spatial_compression_ratio": 16,
            "temporal_compression_ratio": 4,
        },
        ratios=_named,
        z_dim=32,
        official={"use_slicing": True},  # its attention masks do not fit several clips
        single={"use_slicing": True},
    ),
    "ltx_video": Row(
        class_name="AutoencoderKLLTXVideo",
        export="LTXVideoVAE",
        arguments={
            "block_out_channels": [128, 256, 512, 512],
            "decoder_block_out_channels": [128, 256, 512, 512],
            "layers_per_block": [4, 3, 3, 3, 4],
            "decoder_layers_per_block": [4, 3, 3, 3, 4],
            "spatio_temporal_scaling": [True, True, True, False],
            "patch_size": 4,
        },
        ratios=lambda a: (
            2 ** sum(a["spatio_temporal_scaling"]),
            a["patch_size"] * 2 ** sum(a["spatio_temporal_scaling"]),
        ),
        z_dim=128,
        widths=("block_out_channels", "decoder_block_out_channels"),
        blocks=("layers_per_block", "decoder_layers_per_block"),
        flags={"timestep_conditioning": False, "patch_size_t": 1},  # later decoders denoise
    ),
    "ltx2": Row(
        class_name="AutoencoderKLLTX2Video",
        export="LTX2VAE",
        arguments={
            "block_out_channels": [256, 512, 1024, 2048],
            "decoder_block_out_channels": [256, 512, 1024],
            "layers_per_block": [4, 6, 6, 2, 2],
            "decoder_layers_per_block": [5, 5, 5, 5],
            "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
            "patch_size": 4,
        },
        ratios=_ltx2,
        z_dim=128,
        widths=("block_out_channels", "decoder_block_out_channels"),
        blocks=("layers_per_block", "decoder_layers_per_block"),
        flags={"timestep_conditioning": False, "patch_size_t": 1},
    ),
    "mochi": Row(
        class_name="AutoencoderKLMochi",
        export="MochiVAE",
        arguments={
            "encoder_block_out_channels": [64, 128, 256, 384],
            "decoder_block_out_channels": [128, 256, 512, 768],
            "layers_per_block": [3, 3, 4, 6, 3],
            "temporal_expansions": [1, 2, 3],
            "spatial_expansions": [2, 2, 2],
        },
        ratios=lambda a: (math.prod(a["temporal_expansions"]), math.prod(a["spatial_expansions"])),
        z_dim=12,
        widths=("encoder_block_out_channels", "decoder_block_out_channels"),
        multiple=32,  # norms of 32 groups, which no argument changes
        last="proj_out",
    ),
    "cosmos": Row(
        class_name="AutoencoderKLCosmos",
        export="CosmosVAE",
        arguments={
            "encoder_block_out_channels": [128, 256, 512, 512],
            "decode_block_out_channels": [256, 512, 512, 512],
            "num_layers": 2,
            "spatial_compression_ratio": 8,
            "temporal_compression_ratio": 8,
        },
        ratios=_named,
        widths=("encoder_block_out_channels", "decode_block_out_channels"),
        blocks=("num_layers",),
        has_variance=False,
    ),
    "allegro": Row(
        class_name="AutoencoderKLAllegro",
        export="AllegroVAE",
        arguments={
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "temporal_downsample_blocks": [True, True, False, False],
        },
        ratios=_levels("temporal_downsample_blocks", "block_out_channels"),
        z_dim=4,
        groups="norm_num_groups",
        image_first=False,
        untiled=True,
    ),
    "vidtok": Row(
        class_name="AutoencoderVidTok",
        export="VidTokVAE",
        arguments={"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2},
        ratios=lambda a: (
            2 ** len(a["tempo_ds"] if a.get("tempo_ds") else (0, 0)),
            2 ** len(a["spatial_ds"] if a.get("spatial_ds") else a["ch_mult"][1:]),
        ),
        z="z_channels",
        z_dim=4,
        widths=("ch",),
        blocks=("num_res_blocks",),
        flags={"regularizer": "kl", "is_causal": True},
        repeats_first=True,
    ),
}
"""Models by the name that `vae.registry` knows them by."""
