"""VAEs that diffusers ships, behind the same interface: one adapter, one table of what differs.

Weights and sizes come from the config.json and safetensors of diffusers' format. Where nothing else
is said, a video runs whole, without tiles.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from annotated_types import Ge
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.posterior import LOGVAR_RANGE
from common.weights import read_state_dict
from vae.comparators import official
from vae.comparators.base import Comparator, ComparatorConfig
from vae.config import VAEConfig

Arguments = Mapping[str, Any]
SCALING = ("latents_mean", "latents_std", "scaling_factor")
"""Arguments that only say how latents are scaled; `LatentConfig` holds that."""
WHOLE = 1 << 30  # frames; more than any video has


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one model of diffusers differs in."""

    title: str
    """The name people know it by."""
    class_name: str
    """The class in diffusers."""
    export: str
    """Class name in exports of ours."""
    example: str
    """A hub id that has it."""
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
    title="VAE of Wan 2.1",
    class_name="AutoencoderKLWan",
    export="WanVAE",
    example="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
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
        title="VAE of CogVideoX",
        class_name="AutoencoderKLCogVideoX",
        export="CogVideoXVAE",
        example="THUDM/CogVideoX-2b",
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
        title="VAE of Wan 2.2",
        export="Wan22VAE",
        example="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
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
        title="VAE of HunyuanVideo",
        class_name="AutoencoderKLHunyuanVideo",
        export="HunyuanVideoVAE",
        example="hunyuanvideo-community/HunyuanVideo",
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
        title="VAE of HunyuanVideo 1.5",
        class_name="AutoencoderKLHunyuanVideo15",
        export="HunyuanVideo15VAE",
        example="hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v",
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
        title="VAE of LTX-Video",
        class_name="AutoencoderKLLTXVideo",
        export="LTXVideoVAE",
        example="Lightricks/LTX-Video",
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
        title="VAE of LTX-2",
        class_name="AutoencoderKLLTX2Video",
        export="LTX2VAE",
        example="Lightricks/LTX-2",
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
        title="VAE of Mochi 1",
        class_name="AutoencoderKLMochi",
        export="MochiVAE",
        example="genmo/mochi-1-preview",
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
        title="VAE of Cosmos 1.0",
        class_name="AutoencoderKLCosmos",
        export="CosmosVAE",
        example="nvidia/Cosmos-1.0-Diffusion-7B-Text2World",
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
        title="VAE of Allegro",
        class_name="AutoencoderKLAllegro",
        export="AllegroVAE",
        example="rhymes-ai/Allegro",
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
        title="VidTok",
        class_name="AutoencoderVidTok",
        export="VidTokVAE",
        example="microsoft/VidTok",
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


@dataclass(frozen=True, kw_only=True)
class DiffusersConfig(ComparatorConfig):
    """Sizes of a VAE that diffusers builds; those of the published one where none are given."""

    model: str
    """Its row of the table."""
    z_dim: Annotated[int, Ge(0)] = 0
    """Latent channels; 0: as published."""
    arguments: dict[str, bool | int | float | str | list | None] = field(default_factory=dict)
    """What diffusers builds it from, besides z_dim and the scaling of latents."""

    def __post_init__(self) -> None:
        if self.model not in ROWS:
            raise ValueError(f"model={self.model!r}: use one of {', '.join(ROWS)}")
        object.__setattr__(self, "arguments", {**self.row.arguments, **self.arguments})
        object.__setattr__(self, "z_dim", self.z_dim or self.row.z_dim)
        super().__post_init__()
        if self.windows != "official" and self.row.native_window is None:
            raise ValueError(
                f"windows={self.windows}: the {self.row.title} runs videos whole, there are no "
                "windows to leave out"
            )

    @property
    def row(self) -> Row:
        """What this model differs in."""
        return ROWS[self.model]

    @property
    def temporal_ratio(self) -> int:
        return self.row.ratios(self.arguments)[0]

    @property
    def spatial_ratio(self) -> int:
        return self.row.ratios(self.arguments)[1]

    @property
    def frame_step(self) -> int:
        return self.row.frame_step or self.temporal_ratio

    @property
    def first_frames(self) -> int:
        return 1 if self.row.image_first else self.temporal_ratio


class DiffusersVAE(Comparator):
    """Adapter of the classes of diffusers, which builds and loads them; `ADAPTERS` has one of each.

    Wan's decoder clamps to [-1, 1].
    """

    config_class = DiffusersConfig
    config: DiffusersConfig
    encoder_modules = ("vae.encoder", "vae.quant_conv")
    row: ClassVar[Row]
    vae: Any
    """The module of diffusers."""

    def __init__(self, config: DiffusersConfig):
        super().__init__(config)
        self.vae = self._class()(**config.arguments, **{self.row.z: config.z_dim})

    @classmethod
    def from_official(cls, source: str | Path, **options: Any) -> Self:
        cls._class()  # before anything is fetched
        name = "diffusion_pytorch_model.safetensors"
        home = f"https://huggingface.co/{cls.row.example}, folder vae,"
        files = f"config.json and {name} of {home}"
        path, given = official.find(source, (name, f"vae/{name}"), files=files, **options)
        config_file = path.with_name("config.json")
        if not given:
            raise ValueError(f"{config_file}: no such file. Get that of {home} too")
        expected = {"_class_name": cls.row.class_name, **cls.row.flags}
        official.check_flags(config_file, given, expected)
        state = read_state_dict(path)
        model = cls(cls.config_from(given, state))
        official.load(model.vae, state, path, cls.title)
        return model.eval()

    @classmethod
    def config_from(cls, given: Arguments, state: Arguments) -> DiffusersConfig:
        """The config that diffusers' own stands for; `state` are the weights, of which some hold
        the scaling."""
        known = {
            name: _plain(parameter.default)
            for name, parameter in inspect.signature(cls._class()).parameters.items()
        }
        z_dim = given.get(cls.row.z, known[cls.row.z])
        names = {*cls.row.arguments, *(n for n in known if given.get(n, known[n]) != known[n])}
        names -= {cls.row.z, *SCALING}
        scaling = {name: given.get(name, known.get(name)) for name in SCALING} | {
            name: state[name].tolist() for name in SCALING if name in state
        }
        mean, std = _per_channel(scaling["latents_mean"], scaling["latents_std"], z_dim)
        return DiffusersConfig(
            model=next(name for name, row in ROWS.items() if row is cls.row),
            z_dim=z_dim,
            arguments={name: given.get(name, known[name]) for name in sorted(names)},
            latent_mean=mean,
            latent_std=tuple(value / (scaling["scaling_factor"] or 1) for value in std),
        )

    def moments(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        return self._moments(x, self.row.single)

    def frames(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b 3 t h w"]:
        return self._frames(z, self.row.single)

    def moments_in_windows(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        return self._moments(x, self.row.official)

    def frames_in_windows(
        self, z: Float[Tensor, "b z t h w"], count: int
    ) -> Float[Tensor, "b 3 t h w"]:
        return self._frames(z, self.row.official)

    def layers(self) -> list[nn.Module]:
        raise ValueError(
            f"the {self.title} is built by diffusers, from blocks that are not ours: leave out "
            "activation_checkpointing and compile"
        )

    def _moments(self, x: Tensor, attributes: Arguments) -> Tensor:
        self._set(attributes)
        if self.row.repeats_first:
            x = torch.cat([x[:, :, :1]] * (self.config.temporal_ratio - 1) + [x], dim=2)
        if self.row.untiled:
            return _per_frame(self.vae.quant_conv, self.vae.encoder(x))
        moments = self.vae.encode(x).latent_dist.parameters
        self._forget()
        if self.row.has_variance:
            return moments
        return torch.cat([moments, torch.full_like(moments, LOGVAR_RANGE[0])], dim=1)

    def _frames(self, z: Tensor, attributes: Arguments) -> Tensor:
        self._set(attributes)
        if self.row.untiled:
            return self.vae.decoder(_per_frame(self.vae.post_quant_conv, z))
        decoded = self.vae.decode(z)
        self._forget()
        return decoded if isinstance(decoded, Tensor) else decoded.sample

    def _set(self, attributes: Arguments) -> None:
        for name, value in attributes.items():
            setattr(self.vae, name, value)

    def _forget(self) -> None:
        """Drop what VidTok's layers keep for a next chunk: modules hold no activations."""
        for module in self.vae.modules():
            if hasattr(module, "causal_cache"):
                module.causal_cache = None

    @classmethod
    def _class(cls) -> type[nn.Module]:
        try:
            import diffusers
        except ImportError:
            raise ValueError(
                f"the {cls.title} needs diffusers: pip install 'ivvae[compare]'"
            ) from None
        with torch.device("cpu"):  # imported now, and a module may make constants of its own
            found = getattr(diffusers, cls.row.class_name, None)
        if found is None:
            raise ValueError(
                f"the {cls.title} needs a newer diffusers: {diffusers.__version__} has no "
                f"{cls.row.class_name}"
            )
        return found


def _adapter(row: Row) -> type[DiffusersVAE]:
    members = {"row": row, "title": row.title, "native_window": row.native_window}
    members["last_module"] = f"vae.decoder.{row.last}"
    return type(row.export, (DiffusersVAE,), members)


ADAPTERS: dict[str, type[DiffusersVAE]] = {name: _adapter(row) for name, row in ROWS.items()}
"""The models by name."""


def small_config(name: str, like: VAEConfig) -> DiffusersConfig:
    """A config as much smaller than the published one as `like` is than the released IV-VAE."""
    row, usual = ROWS[name], VAEConfig()

    def each(value: Any, change: Callable[[int], int]) -> Any:
        return [change(one) for one in value] if isinstance(value, list) else change(value)

    def narrowed(width: int) -> int:
        return -(-max(1, width * like.dim // usual.dim) // row.multiple) * row.multiple

    def shortened(count: int) -> int:
        return max(1, count + like.num_blocks - usual.num_blocks)

    changes = {key: each(row.arguments[key], narrowed) for key in row.widths}
    changes |= {key: each(row.arguments[key], shortened) for key in row.blocks}
    if row.groups is not None:
        widths = [width for key in row.widths for width in changes[key]]
        changes[row.groups] = math.gcd(narrowed(row.arguments[row.groups]), *widths)
    return DiffusersConfig(model=name, z_dim=like.z_dim, arguments=changes)


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0])


def _per_channel(
    mean: list[float] | None, std: list[float] | None, z_dim: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel; those of Cosmos, per latent frame, over all of them."""
    if not mean or not std or len(mean) % z_dim or len(mean) != len(std):
        return (0.0,), (1.0,)
    means, stds = (torch.tensor(v, dtype=torch.float64).view(z_dim, -1) for v in (mean, std))
    whole = (stds.square().mean(1) + means.var(1, correction=0)).sqrt()
    return tuple(means.mean(1).tolist()), tuple(whole.tolist())


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return None if value is inspect.Parameter.empty else json.loads(json.dumps(value))
