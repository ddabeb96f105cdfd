"""What every comparator does alike: the authors' windows, or one window.

The windows of the official inference are runs of frames, and tiles of a frame, one after the other.
They change the result of these models, whose norms see all of a window.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from common.weights import PublishedWeights
from vae.base import VideoAutoencoder
from vae.config import Count, LatentConfig, LatentStd
from vae.posterior import DiagonalGaussian
from vae.tiling import run_tiles, spans

Run = Callable[[Tensor], Tensor]
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


@dataclass(frozen=True, kw_only=True)
class SDConfig(ComparatorConfig):
    """Sizes of a video VAE with the layout of SD's image VAE."""

    latent_std: LatentStd = (1 / 0.18215,)
    """Standard deviation of the latents: the inverse of the official factor."""
    dim: Count = 128
    """Channels of the first level."""
    channel_multipliers: tuple[Count, ...] = (1, 2, 4, 4)
    """Channels per level in units of dim."""
    num_blocks: Count = 2
    """Residual blocks per encoder level; a decoder level has one more."""
    norm_groups: Count = 32
    """Groups of the norms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__.removesuffix("Config")
        check_widths(name, self.dim, self.channel_multipliers, self.norm_groups)

    @property
    def widths(self) -> list[int]:
        """Channels per level."""
        return [self.dim * factor for factor in self.channel_multipliers]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Runs of `length` frames; neighbors share `overlap`, and the later one drops as many outputs.

    Source of the lengths: each model's official inference.
    """

    length: int
    """Input frames of a window."""
    overlap: int = 0
    """Input frames that neighbors share, and output frames that every window but the first drops.
    """

    def spans(self, total: int) -> list[slice]:
        """The windows of `total` frames; the last one may be shorter."""
        stride = self.length - self.overlap
        starts = range(0, max(total - self.overlap, 1), stride)
        return [slice(start, start + self.length) for start in starts]

    def run(self, step: Run, x: Tensor) -> Tensor:
        """`step` of every window of `x` (b c t h w), joined along t."""
        parts = [step(x[:, :, span]) for span in self.spans(x.shape[2])]
        return torch.cat([parts[0], *(part[:, :, self.overlap :] for part in parts[1:])], dim=2)


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Square tiles of `size` pixels; neighbors fade linearly into each other over the `overlap`
    that they share. Frames no larger than a tile are run whole.
    """

    size: int
    """Side of a tile."""
    overlap: int
    """Pixels that neighbors share."""

    def run(self, step: Run, x: Tensor, scale_in: int, scale_out: int) -> Tensor:
        """`step` of every tile of `x` (b c t h w), blended; scales as of `vae.tiling.TiledStep`."""
        sides = [side * scale_in for side in x.shape[-2:]]
        if max(sides) <= self.size:
            return step(x)
        stride = self.size - self.overlap
        rows, columns = (
            spans(range(0, max(side - self.overlap, 1), stride), self.size, side, self.overlap)
            for side in sides
        )
        return run_tiles(step, x, rows, columns, scale_in, scale_out)


class Comparator(VideoAutoencoder):
    """A video VAE of others; a subclass computes one window (`moments`, `frames`)."""

    config_class: ClassVar[type[ComparatorConfig]]
    published: ClassVar[PublishedWeights]
    """The official weights."""
    encode_windows: ClassVar[Windows]
    decode_windows: ClassVar[Windows]
    tiles: ClassVar[Tiles]
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
        untiled = partial(self.encode_windows.run, self.moments)
        return self.tiles.run(untiled, x, 1, self.config.spatial_ratio)

    def frames_in_windows(
        self, z: Float[Tensor, "b z t h w"], count: int
    ) -> Float[Tensor, "b 3 t h w"]:
        """The `count` frames in the authors' windows and tiles."""

        def window(part: Tensor) -> Tensor:
            return self.frames(part, self.config.decoded_frames(part.shape[2]))

        untiled = partial(self.decode_windows.run, window)
        return self.tiles.run(untiled, z, self.config.spatial_ratio, 1)
