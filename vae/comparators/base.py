"""What every comparator does alike: checks, windows, the posterior, normalisation, training."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.pretrained import Pretrained
from vae import inputs
from vae.comparators.blocks import ResidualBlock, SpatialAttention
from vae.comparators.windows import Tiles, Windows
from vae.config import _check_multiple, check_frames
from vae.posterior import DiagonalGaussian


@dataclass(frozen=True, kw_only=True)
class ComparatorConfig:
    """What a comparator has in common with `VAEConfig`: how latents relate to videos."""

    z_dim: int = 4
    """Latent channels."""
    latent_mean: tuple[float, ...] = (0.0,)
    """Mean of the latents, one value or one per channel; `normalize` subtracts it."""
    latent_std: tuple[float, ...] = (1.0,)
    """Standard deviation of the latents, one value or one per channel."""
    windowed: bool = False
    """Encode and decode videos in the windows of the official inference, which changes the result;
    otherwise as one window. Training always uses one."""

    temporal_ratio: ClassVar[int] = 4
    """Frames per latent frame."""
    spatial_ratio: ClassVar[int] = 8
    """Pixels per latent position along height and along width."""
    frame_step: ClassVar[int] = 4
    """A video has 1 + frame_step * n frames."""

    def __post_init__(self) -> None:
        if self.z_dim < 1:
            raise ValueError(f"z_dim={self.z_dim} must be at least 1")
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) not in (1, self.z_dim):
                raise ValueError(
                    f"{name} needs 1 or z_dim={self.z_dim} values, got {getattr(self, name)}"
                )
        if min(self.latent_std) <= 0:
            raise ValueError(f"latent_std={self.latent_std} must be positive")

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Latent `c t h w` of a video of `frames` x `height` x `width`.

        Raises:
            ValueError: frames or a side that the model does not take; names the nearest allowed.
        """
        self.check_frames(frames)
        for name, size in (("height", height), ("width", width)):
            _check_multiple(name, size, self.spatial_ratio)
        side = self.spatial_ratio
        return self.z_dim, self.latent_frames(frames), height // side, width // side

    def check_frames(self, frames: int) -> None:
        """Refuse a number of frames that the model does not take."""
        check_frames(frames, self.frame_step)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of so many frames."""
        return 1 + (frames - 1) // self.temporal_ratio

    def decoded_frames(self, latent_frames: int) -> int:
        """Frames that so many latent frames are decoded to, unless told otherwise."""
        return 1 + (latent_frames - 1) * self.temporal_ratio


def check_widths(name: str, dim: int, multipliers: Sequence[int], norm_groups: int) -> None:
    """Refuse channels that four levels with GroupNorm cannot have."""
    if len(multipliers) != 4 or min(multipliers) < 1:
        raise ValueError(f"{name} multipliers {tuple(multipliers)} must be 4 positive numbers")
    if dim < 1 or norm_groups < 1 or dim % norm_groups:
        raise ValueError(
            f"{name} channels {dim} must be a positive multiple of norm_groups={norm_groups}"
        )


class Comparator(nn.Module, Pretrained, library_name="ivvae", tags=["video-vae"]):
    """A video VAE of others behind the interface of `vae.VideoVAE`.

    A subclass computes one window (`moments`, `frames`). Latents are raw; `normalize` and
    `denormalize` apply the statistics of the config. Inputs of any float type are converted to the
    weights' type.
    """

    config_class: ClassVar[type[ComparatorConfig]]
    title: ClassVar[str]
    """The name people know it by."""
    native_window: ClassVar[int | None] = None
    """Frames of a window of the official inference; None: it runs videos whole."""
    encode_windows: ClassVar[Windows | None] = None
    decode_windows: ClassVar[Windows | None] = None
    encode_tiles: ClassVar[Tiles | None] = None
    decode_tiles: ClassVar[Tiles | None] = None
    _last: ClassVar[str] = "decoder.conv_out"

    def __init__(self, config: ComparatorConfig):
        super().__init__()
        self.config: Any = config

    @classmethod
    @abstractmethod
    def from_official(cls, source: str | Path, **options: Any) -> Self:
        """Load the official checkpoint from a path or hub id, in eval mode.

        Args:
            source: file, folder or hub id; a third part of a hub id is a folder in it.
            options: of the hub: `revision`, `token`, `cache_dir`, `local_files_only`.
        Raises:
            ValueError: not there (says what to get and where to put it), or another version (names
            what differs).
        """

    @abstractmethod
    def moments(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        """[mean | log-variance] of one window. Checks nothing."""

    @abstractmethod
    def frames(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b 3 t h w"]:
        """The `count` frames of one window of latents. Checks nothing."""

    def encode(self, x: Float[Tensor, "b 3 t h w"]) -> DiagonalGaussian:
        """Posterior of a whole video in [-1, 1], as one window unless `config.windowed`.

        Raises: ValueError if t, h or w are not allowed, naming the nearest that are, or x is not
            `b 3 t h w` float, is on another device, not finite or not in [-1, 1].
        """
        x = self._admit(x, inputs.check_video, inputs.check_pixels)
        self.config.latent_shape(*x.shape[2:])
        return DiagonalGaussian.from_moments(self._encode(x))

    def decode(
        self, z: Float[Tensor, "b z t h w"], *, size: Sequence[int] | None = None
    ) -> Float[Tensor, "b 3 t h w"]:
        """Video of a whole raw latent, not clamped to [-1, 1].

        Args:
            z: the latent, not normalised.
            size: frames, height and width of the video that was encoded. Default:
                `config.decoded_frames(t)` of 8 h x 8 w.
        Raises: ValueError if z is not `b z t h w` float, is on another device or not finite, or no
            video of `size` has such a latent.
        """
        z = self._admit(z, lambda z: _check_latent(z, self.config), inputs.check_finite)
        t, h, w = z.shape[2:]
        side = self.config.spatial_ratio
        whole = (self.config.decoded_frames(t), h * side, w * side)
        wanted = whole if size is None else tuple(size)
        if self.config.latent_shape(*wanted) != tuple(z.shape[1:]):
            raise ValueError(
                f"size={wanted} (t, h, w) has another latent than {tuple(z.shape[1:])}: give the "
                "size of the video that was encoded"
            )
        return self._decode(z, wanted[0])

    def reconstruct(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """The decoded mode of the posterior, of x's size."""
        return self.decode(self.encode(x).mode(), size=x.shape[2:])

    def forward(
        self, x: Float[Tensor, "b 3 t h w"], noise: Float[Tensor, "b z t h w"]
    ) -> tuple[Float[Tensor, "b 3 t h w"], DiagonalGaussian]:
        """For training: the reconstruction of mean + std * noise, and the posterior.

        One window; values are not checked.
        """
        inputs.check_video(x)
        self.config.latent_shape(*x.shape[2:])
        posterior = DiagonalGaussian.from_moments(self.moments(x))
        return self.frames(posterior.at(noise).to(x.dtype), x.shape[2]), posterior

    def normalize(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """(z - latent_mean) / latent_std, the model's documented scaling for generation."""
        return (z - self._statistic("latent_mean", z)) / self._statistic("latent_std", z)

    def denormalize(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """The inverse of `normalize`."""
        return z * self._statistic("latent_std", z) + self._statistic("latent_mean", z)

    def last_layer(self) -> list[nn.Parameter]:
        """Weights of the decoder's last convolution, for the adaptive weight of a GAN loss."""
        decoder = self.get_submodule(self._last)
        return list(decoder.parameters())

    def layers(self) -> list[nn.Module]:
        """Residual and attention blocks, which training may compile or recompute.

        Raises:
            ValueError: the model is built by diffusers, from blocks of its own.
        """
        return [m for m in self.modules() if isinstance(m, ResidualBlock | SpatialAttention)]

    def reset_parameters(self) -> None:
        """Random weights by the rule of `VideoVAE.reset_parameters`, so that budgets compare."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock | SpatialAttention):
                for parameter in module.last.parameters():
                    nn.init.zeros_(parameter)

    def _encode(self, x: Tensor) -> Tensor:
        if not self.config.windowed or self.encode_windows is None:
            return self.moments(x)
        windows, tiles = self.encode_windows, self.encode_tiles

        def whole(x: Tensor) -> Tensor:
            return windows.run(self.moments, x)

        return whole(x) if tiles is None else tiles.run(whole, x)

    def _decode(self, z: Tensor, count: int) -> Tensor:
        if not self.config.windowed or self.decode_windows is None:
            return self.frames(z, count)
        windows, tiles = self.decode_windows, self.decode_tiles

        def whole(z: Tensor) -> Tensor:
            count = self.config.decoded_frames
            return windows.run(lambda part: self.frames(part, count(part.shape[2])), z)

        return whole(z) if tiles is None else tiles.run(whole, z)

    def _statistic(self, name: str, z: Tensor) -> Tensor:
        value = torch.tensor(getattr(self.config, name), dtype=z.dtype, device=z.device)
        return value.view(-1, 1, 1, 1)

    def _admit(self, x: Tensor, check_shape: Any, check_values: Any) -> Tensor:
        weight = next(self.parameters())
        check_shape(x)
        inputs.check_device(x, weight)
        check_values(x)
        return x.to(weight.dtype)


def _check_latent(z: Tensor, config: ComparatorConfig) -> None:
    inputs.check_latent(z, config)  # type: ignore[arg-type]
