"""What the pipeline needs of a video VAE, ours or another's."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from vae.posterior import DiagonalGaussian

Video = Float[Tensor, "b 3 t h w"]
Latent = Float[Tensor, "b z t h w"]


class LatentConfig(Protocol):
    """How latents relate to videos: part of `VAEConfig` and of every `ComparatorConfig`."""

    @property
    def z_dim(self) -> int:
        """Latent channels."""
        ...

    @property
    def temporal_ratio(self) -> int:
        """Frames per latent frame."""
        ...

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent position along height and along width."""
        ...

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Latent `c t h w`; ValueError for what the model does not take."""
        ...


@runtime_checkable
class ReconstructionVAE(Protocol):
    """A video VAE: `vae.VideoVAE` and the comparators have this interface.

    Besides, it is an `nn.Module` that is called as `model(x, noise) -> (reconstruction, posterior)`
    in training, and it has `save_pretrained`.
    """

    @property
    def config(self) -> LatentConfig:
        """Its sizes."""
        ...

    def encode(self, x: Video) -> DiagonalGaussian:
        """Posterior over raw latents."""
        ...

    def decode(self, z: Latent, *, size: Sequence[int] | None = None) -> Video:
        """Video of a raw latent; `size` is that of the video that was encoded."""
        ...

    def reconstruct(self, x: Video) -> Video:
        """The decoded mode."""
        ...

    def normalize(self, z: Latent) -> Latent:
        """The latent as a generator is trained on it."""
        ...

    def denormalize(self, z: Latent) -> Latent:
        """The inverse of `normalize`."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Its weights."""
        ...


def clip_size(config: LatentConfig, z: Latent, frames: int | None) -> tuple[int, int, int] | None:
    """`size` for decoding latents of a clip of `frames`; None if that is not known, for the usual
    number. Open-Sora's VAE decodes the same latents to one of four numbers.
    """
    side = config.spatial_ratio
    return None if frames is None else (frames, z.shape[3] * side, z.shape[4] * side)


def valid_frames(config: LatentConfig, frames: int) -> int:
    """The allowed number of frames that is nearest to `frames`, the smaller of two."""
    side = config.spatial_ratio
    for distance in range(abs(frames) + 64):
        for candidate in (frames - distance, frames + distance):
            try:
                config.latent_shape(candidate, side, side)
            except ValueError:
                continue
            return candidate
    raise AssertionError(f"no frame count near {frames} fits {config}")


def native_window(vae: nn.Module) -> int | None:
    """Frames of a window of the model's own inference; None: it runs videos whole."""
    return getattr(vae, "native_window", None)
