"""The VAE of CogVideoX (Yang et al. 2024), as diffusers has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from vae.comparators.base import ComparatorConfig, check_widths
from vae.comparators.diffusers_vae import DiffusersVAE
from vae.config import Count, LatentStd

WHOLE = 1 << 30  # frames; more than any video has
OFFICIAL_FRAMES, OFFICIAL_LATENTS = 8, 2
"""Of a window of diffusers' inference; what remains joins the first."""


@dataclass(frozen=True, kw_only=True)
class CogVideoXConfig(ComparatorConfig):
    """Sizes of a CogVideoX VAE; the defaults are CogVideoX-2b's."""

    z_dim: Count = 16
    """Latent channels."""
    latent_std: LatentStd = (1 / 1.15258426,)
    """Standard deviation of the latents: the inverse of the scaling factor."""
    channels: tuple[Count, ...] = (128, 256, 256, 512)
    """Channels per level."""
    num_blocks: Count = 3
    """Residual blocks per encoder level; a decoder level has one more."""
    norm_groups: Count = 32
    """Groups of the norms."""

    @property
    def frame_step(self) -> int:
        """8: diffusers decodes an even number of latent frames to 4 frames each, and an odd one to
        1 and 4 for each other; so only 1 + 8n frames come back as they were.
        """
        return 8

    def __post_init__(self) -> None:
        super().__post_init__()
        for width in self.channels:
            check_widths("CogVideoX", width, (1,) * len(self.channels), self.norm_groups)


class CogVideoXVAE(DiffusersVAE):
    """`AutoencoderKLCogVideoX`: compresses 1 + 8n frames by 4 x 8 x 8."""

    config_class = CogVideoXConfig
    title = "VAE of CogVideoX"
    native_window = 9
    class_name = "AutoencoderKLCogVideoX"
    example = "THUDM/CogVideoX-2b"
    flags: ClassVar[Mapping[str, Any]] = {
        "temporal_compression_ratio": 4,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": None,
    }

    @classmethod
    def arguments(cls, config: CogVideoXConfig) -> dict[str, Any]:
        return {
            "latent_channels": config.z_dim,
            "block_out_channels": config.channels,
            "layers_per_block": config.num_blocks,
            "norm_num_groups": config.norm_groups,
            "scaling_factor": 1 / config.latent_std[0],
        }

    @classmethod
    def config_from(cls, given: Mapping[str, Any]) -> CogVideoXConfig:
        default = CogVideoXConfig()
        return CogVideoXConfig(
            z_dim=given.get("latent_channels", default.z_dim),
            latent_std=(1 / given.get("scaling_factor", 1 / default.latent_std[0]),),
            channels=tuple(given.get("block_out_channels", default.channels)),
            num_blocks=given.get("layers_per_block", default.num_blocks),
            norm_groups=given.get("norm_num_groups", default.norm_groups),
        )

    def moments(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        self._set_windows(WHOLE, WHOLE)
        return super().moments(x)

    def frames(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b 3 t h w"]:
        self._set_windows(WHOLE, WHOLE)
        return super().frames(z, count)

    def moments_in_windows(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        self._set_windows(OFFICIAL_FRAMES, OFFICIAL_LATENTS)
        return super().moments(x)

    def frames_in_windows(
        self, z: Float[Tensor, "b z t h w"], count: int
    ) -> Float[Tensor, "b 3 t h w"]:
        self._set_windows(OFFICIAL_FRAMES, OFFICIAL_LATENTS)
        return super().frames(z, count)

    def _set_windows(self, frames: int, latents: int) -> None:
        self.vae.num_sample_frames_batch_size = frames
        self.vae.num_latent_frames_batch_size = latents
