"""The VAE of Wan 2.1 (2025), as diffusers has it. It is causal, so windows do not change it."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vae.comparators.base import ComparatorConfig
from vae.comparators.diffusers_vae import DiffusersVAE
from vae.config import Count


@dataclass(frozen=True, kw_only=True)
class WanConfig(ComparatorConfig):
    """Sizes of a Wan VAE; the defaults are Wan 2.1's."""

    z_dim: Count = 16
    """Latent channels."""
    dim: Count = 96
    """Channels of the first level."""
    channel_multipliers: tuple[Count, ...] = (1, 2, 4, 4)
    """Channels per level in units of dim."""
    num_blocks: Count = 2
    """Residual blocks per encoder level; a decoder level has one more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.windows != "official":
            raise ValueError(
                f"windows={self.windows}: the VAE is causal, windows do not change its result"
            )
        if len(self.channel_multipliers) != 4:
            raise ValueError(
                f"channel_multipliers={self.channel_multipliers} must have 4 values, one per level"
            )


class WanVAE(DiffusersVAE):
    """`AutoencoderKLWan`: compresses 1 + 4n frames by 4 x 8 x 8. It clamps what it decodes to
    [-1, 1]. Its architecture is the paper's baseline: `vae.convert.from_wan`.
    """

    config_class = WanConfig
    title = "VAE of Wan 2.1"
    class_name = "AutoencoderKLWan"
    example = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    flags: ClassVar[Mapping[str, Any]] = {
        "is_residual": False,
        "patch_size": None,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
    }

    @classmethod
    def arguments(cls, config: WanConfig) -> dict[str, Any]:
        z = config.z_dim
        per_channel = {
            f"latents_{name}": list(values) * (z // len(values))
            for name, values in (("mean", config.latent_mean), ("std", config.latent_std))
        }
        return {
            "z_dim": z,
            "base_dim": config.dim,
            "dim_mult": list(config.channel_multipliers),
            "num_res_blocks": config.num_blocks,
            **per_channel,
        }

    @classmethod
    def config_from(cls, given: Mapping[str, Any]) -> WanConfig:
        parameters = inspect.signature(cls._class()).parameters

        def value(name: str) -> Any:
            return given.get(name, parameters[name].default)

        return WanConfig(
            z_dim=value("z_dim"),
            dim=value("base_dim"),
            channel_multipliers=tuple(value("dim_mult")),
            num_blocks=value("num_res_blocks"),
            latent_mean=tuple(value("latents_mean")),
            latent_std=tuple(value("latents_std")),
        )
