"""What every comparator does alike: the authors' windows, or one window."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from jaxtyping import Float
from torch import Tensor, nn

from vae.base import VideoAutoencoder
from vae.comparators.blocks import ResidualBlock, SpatialAttention
from vae.comparators.windows import Tiles, Windows
from vae.config import Count, LatentConfig
from vae.posterior import DiagonalGaussian

InferenceWindows = Literal["official", "single"]
"""The windows of the authors' own inference, or a single one for the whole video."""


@dataclass(frozen=True, kw_only=True)
class ComparatorConfig(LatentConfig):
    """What the comparators' configs have in common."""

    z_dim: Count = 4
    """Latent channels."""
    windows: InferenceWindows = "official"
    """Encode and decode videos in the windows and tiles of the authors' own inference, or in a
    single window, which changes the result. Training always uses a single one."""


def check_widths(name: str, dim: int, multipliers: Sequence[int], norm_groups: int) -> None:
    """Refuse channels that four levels with GroupNorm cannot have."""
    if len(multipliers) != 4:
        raise ValueError(f"{name} multipliers {tuple(multipliers)} must be 4 numbers")
    if dim % norm_groups:
        raise ValueError(f"{name} channels {dim} must be a multiple of norm_groups={norm_groups}")


class Comparator(VideoAutoencoder):
    """A video VAE of others; a subclass computes one window (`moments`, `frames`)."""

    config_class: ClassVar[type[ComparatorConfig]]
    encode_windows: ClassVar[Windows | None] = None
    decode_windows: ClassVar[Windows | None] = None
    encode_tiles: ClassVar[Tiles | None] = None
    decode_tiles: ClassVar[Tiles | None] = None
    last_module = "decoder.conv_out"

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

    def encode(self, x: Float[Tensor, "b 3 t h w"]) -> DiagonalGaussian:
        x = self._admit_video(x)
        self.config.latent_shape(*x.shape[2:])
        official = self.config.windows == "official"
        return DiagonalGaussian.from_moments(
            self.moments_in_windows(x) if official else self.moments(x)
        )

    def decode(
        self, z: Float[Tensor, "b z t h w"], *, size: Sequence[int] | None = None
    ) -> Float[Tensor, "b 3 t h w"]:
        z = self._admit_latent(z)
        wanted = self.config.decoded_size(z) if size is None else tuple(size)
        if self.config.latent_shape(*wanted) != z.shape[1:]:
            raise ValueError(
                f"size={wanted} (t, h, w) has another latent than {tuple(z.shape[1:])}: give the "
                "size of the video that was encoded"
            )
        official = self.config.windows == "official"
        return (self.frames_in_windows if official else self.frames)(z, wanted[0])

    def moments_in_windows(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        """[mean | log-variance] in the authors' windows and tiles."""
        windows, tiles = self.encode_windows, self.encode_tiles
        if windows is None:
            return self.moments(x)

        def whole(x: Tensor) -> Tensor:
            return windows.run(self.moments, x)

        return whole(x) if tiles is None else tiles.run(whole, x)

    def frames_in_windows(
        self, z: Float[Tensor, "b z t h w"], count: int
    ) -> Float[Tensor, "b 3 t h w"]:
        """The `count` frames in the authors' windows and tiles."""
        windows, tiles = self.decode_windows, self.decode_tiles
        if windows is None:
            return self.frames(z, count)

        def window(part: Tensor) -> Tensor:
            return self.frames(part, self.config.decoded_frames(part.shape[2]))

        def whole(z: Tensor) -> Tensor:
            return windows.run(window, z)

        return whole(z) if tiles is None else tiles.run(whole, z)

    def layers(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, ResidualBlock | SpatialAttention)]

    @staticmethod
    def branch_end(layer: ResidualBlock | SpatialAttention) -> nn.Module:
        return layer.last
