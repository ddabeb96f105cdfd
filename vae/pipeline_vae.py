"""A VAE of ours as the video pipelines of diffusers take theirs."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vae.model import VideoVAE
from vae.posterior import DiagonalGaussian


class Encoded(NamedTuple):
    """What `PipelineVAE.encode` returns."""

    latent_dist: DiagonalGaussian
    """With `mean`, `logvar`, `mode()` and `sample(generator)`."""


class Decoded(NamedTuple):
    """What `PipelineVAE.decode` returns."""

    sample: Float[Tensor, "b 3 t h w"]
    """Frames, not clamped to [-1, 1]."""


class PipelineVAE(nn.Module):
    """`encode(x).latent_dist` and `decode(z).sample`, with the config that pipelines read.

        vae = PipelineVAE(VideoVAE.from_pretrained(folder), mean=metadata.mean, std=metadata.std)
        WanPipeline(vae=vae, transformer=..., scheduler=..., text_encoder=..., tokenizer=...)

    Names of the config are those of `AutoencoderKLWan`, `AutoencoderKLHunyuanVideo` and
    `AutoencoderKLCogVideoX`, their spelling included.
    """

    def __init__(
        self,
        vae: VideoVAE,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        normalized: bool = False,
    ):
        """Wrap `vae`, whose weights are shared.

        Args:
            mean, std: of raw latents, one or one per channel, by which the transformer's latents
                are normalized; default: those of the VAE's config.
            normalized: latents of `encode` and `decode` are normalized ones, and the config says
                that nothing is left to do: for pipelines that know a single `scaling_factor`
                (CogVideoX, HunyuanVideo) in place of `latents_mean` and `latents_std` (Wan, LTX).
        Raises:
            ValueError: another number of values, or deviations that are not above 0.
        """
        super().__init__()
        given = {"latent_mean": mean, "latent_std": std}
        changes = {name: tuple(values) for name, values in given.items() if values is not None}
        config = self.latents = replace(vae.config, **changes)
        self.vae, self.normalized = vae, normalized
        self.temporal_compression_ratio = config.temporal_ratio
        self.spatial_compression_ratio = config.spatial_ratio
        self.temperal_downsample = list(config.temporal_downsample)
        self.config = SimpleNamespace(
            in_channels=3,
            out_channels=3,
            z_dim=config.z_dim,
            latent_channels=config.z_dim,
            block_out_channels=list(config.channels),
            temperal_downsample=self.temperal_downsample,
            temporal_compression_ratio=config.temporal_ratio,
            spatial_compression_ratio=config.spatial_ratio,
            scale_factor_temporal=config.temporal_ratio,
            scale_factor_spatial=config.spatial_ratio,
            latents_mean=self._per_channel((0.0,) if normalized else config.latent_mean),
            latents_std=self._per_channel((1.0,) if normalized else config.latent_std),
            scaling_factor=1.0,
            shift_factor=None,
            invert_scale_latents=False,
            timestep_conditioning=False,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.vae.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.vae.parameters()).device

    @property
    def latents_mean(self) -> Float[Tensor, " z"]:
        """As the config has it, for pipelines that read it here."""
        return torch.tensor(self.config.latents_mean, device=self.device)

    @property
    def latents_std(self) -> Float[Tensor, " z"]:
        """Likewise."""
        return torch.tensor(self.config.latents_std, device=self.device)

    def encode(self, x: Float[Tensor, "b 3 t h w"], return_dict: bool = True) -> Encoded:
        """The posterior of a whole video in [-1, 1]; errors are those of `VideoVAE.encode`.

        What is returned is a tuple, too, which is what `return_dict=False` asks for.
        """
        posterior = self.vae.encode(x)
        if self.normalized:
            mean, std = self.latents.statistics(posterior.mean)
            posterior = DiagonalGaussian(
                (posterior.mean - mean) / std, posterior.logvar - 2 * std.log()
            )
        return Encoded(posterior)

    def decode(
        self, z: Float[Tensor, "b z t h w"], temb: None = None, return_dict: bool = True
    ) -> Decoded:
        """The frames of a whole latent; errors are those of `VideoVAE.decode`.

        `temb` is what decoders that denoise take; ours is none.
        """
        if self.normalized:
            mean, std = self.latents.statistics(z)
            z = z * std + mean
        return Decoded(self.vae.decode(z))

    def _per_channel(self, values: Sequence[float]) -> list[float]:
        return list(values) * (self.vae.config.z_dim // len(values))
