"""The base of all video autoencoders: `vae.VideoVAE` and the comparators."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.pretrained import Pretrained
from vae import inputs
from vae.edits import Edits
from vae.posterior import DiagonalGaussian


class ResidualLayer(nn.Module):
    """A residual or attention block; training may compile it."""

    end: ClassVar[str]
    """Name of the module whose output is added to the block's input."""


class VideoAutoencoder(nn.Module, Pretrained, library_name="ivvae", tags=["video-vae"]):
    """A VAE of videos `b 3 t h w` in [-1, 1], with latents `b z t h w`.

    `encode` and `decode` work on raw latents; `normalize` and `denormalize` apply the statistics
    kept in the config. Inputs of any float type are converted to the weights' type. A subclass
    names its config's class in `config_class`, a subclass of `vae.config.LatentConfig`.
    """

    title: ClassVar[str]
    """The name people know it by."""
    native_window: ClassVar[int | None] = None
    """Frames of a window of the authors' inference; None: it runs videos whole, or windows do not
    change its result."""
    encoder_modules: ClassVar[tuple[str, ...]] = ("encoder", "quant_conv")
    """Names of the modules that latents depend on; the others make frames of latents."""
    last_module: ClassVar[str]
    """Name of the module that ends the decoder."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        # what training puts in place of hidden latents; weights are loaded without it
        self.mask_token: nn.Parameter | None
        self.register_parameter("mask_token", None)
        self.register_load_state_dict_pre_hook(_drop_unused_token)

    @abstractmethod
    def encode(self, x: Float[Tensor, "b 3 t h w"]) -> DiagonalGaussian:
        """Posterior of a whole video in [-1, 1].

        Raises: ValueError if t, h or w are not allowed, naming the nearest that are, or x is not
            `b 3 t h w` float, is on another device, not finite or not in [-1, 1].
        """

    @abstractmethod
    def decode(
        self, z: Float[Tensor, "b z t h w"], *, size: Sequence[int] | None = None
    ) -> Float[Tensor, "b 3 t h w"]:
        """Video of a whole raw latent, not clamped to [-1, 1].

        Args:
            z: the latent, not normalized.
            size: frames, height and width of the video that was encoded. Default:
                `config.decoded_size(z)`.
        Raises: ValueError if z is not `b z t h w` float, is on another device or not finite, or no
            video of `size` has such a latent.
        """

    def decode_parts(
        self, z: Float[Tensor, "b z t h w"], frames: int | None = None
    ) -> Iterator[Float[Tensor, "b 3 t h w"]]:
        """Successive frames of `decode`, in as many parts as the model can make one by one: one
        here. Without gradients.

        Args:
            frames: of the video that was encoded. Default: those of `config.decoded_size(z)`.
        """
        with torch.no_grad():
            yield self.decode(z, size=self.config.decoded_size(z, frames))

    @abstractmethod
    def moments(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        """[mean | log-variance] of a whole video, run at once. Checks nothing."""

    @abstractmethod
    def frames(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b 3 t h w"]:
        """The `count` frames of a whole latent, run at once. Checks nothing."""

    def layers(self) -> list[ResidualLayer]:
        """Residual and attention blocks.

        Raises:
            ValueError: the model is not built from blocks of ours.
        """
        return [module for module in self.modules() if isinstance(module, ResidualLayer)]

    def reconstruct(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """The decoded mode of the posterior, of x's size."""
        return self.decode(self.encode(x).mode(), size=x.shape[2:])

    def forward(
        self,
        x: Float[Tensor, "b 3 t h w"],
        noise: Float[Tensor, "b z t h w"],
        edits: Edits | None = None,
    ) -> tuple[Float[Tensor, "b 3 t h w"] | list[Tensor], DiagonalGaussian]:
        """For training: the reconstruction of mean + std * noise, and the posterior.

        With `edits` a list: what is decoded from each of their latents in place of this one. The
        whole video runs at once. Values are not checked, so that the host need not wait for the
        device and torch.compile sees one graph; the trainer stops at a loss that is not finite.
        """
        inputs.check_video(x)
        self.config.latent_shape(*x.shape[2:])
        posterior = DiagonalGaussian.from_moments(self.moments(x))
        z = posterior.at(noise).to(x.dtype)
        if edits is None:
            return self.frames(z, x.shape[2]), posterior
        return [self.frames(*each) for each in edits.latents(z, self.mask_token)], posterior

    def normalize(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """(z - latent_mean) / latent_std: roughly zero mean, unit variance."""
        inputs.check_latent(z, self.config)
        mean, std = self.config.statistics(z)
        return (z - mean) / std

    def denormalize(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """The inverse of `normalize`."""
        inputs.check_latent(z, self.config)
        mean, std = self.config.statistics(z)
        return z * std + mean

    def last_layer(self) -> list[nn.Parameter]:
        """Weights of the decoder's last convolution, for the adaptive weight of a GAN loss."""
        return list(self.get_submodule(self.last_module).parameters())

    def reset_parameters(self) -> None:
        """Random weights that keep the size of activations, with every residual branch at zero.

        Ours: the papers do not state an initialization from scratch. PyTorch's own makes early
        training several times slower and unstable at higher learning rates.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in self.layers():
            for parameter in layer.get_submodule(layer.end).parameters():
                nn.init.zeros_(parameter)

    def _admit_video(self, x: Tensor) -> Tensor:
        """Check x and give it the weights' type."""
        weight = next(self.parameters())
        inputs.check_video(x)
        inputs.check_device(x, weight)
        inputs.check_pixels(x)
        return x.to(weight.dtype)

    def _admit_latent(self, z: Tensor) -> Tensor:
        """Check z and give it the weights' type."""
        weight = next(self.parameters())
        inputs.check_latent(z, self.config)
        inputs.check_device(z, weight)
        inputs.check_finite(z)
        return z.to(weight.dtype)


def _drop_unused_token(
    module: VideoAutoencoder, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Let a model without a token take the weights of one that was trained with it."""
    if module.mask_token is None:
        state.pop(f"{prefix}mask_token", None)
