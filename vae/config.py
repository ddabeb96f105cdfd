"""What defines a VAE: one frozen dataclass, kept with the weights."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Architecture of a VAE; the defaults are the released IV-VAE (z 16, dim 64)."""

    z_dim: int = 16
    """Latent channels; half of them describe keyframes, half motion."""
    dim: int = 64
    """Channels of one branch at the first level."""
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels per level in units of dim; between levels height and width halve."""
    num_blocks: int = 2
    """Residual blocks per encoder level; a decoder level has one more."""
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    """Which of the steps between levels halve the frames of a group too."""
    branches: int = 2
    """2: keyframe (2D) and motion (3D) branch; 1: the image VAE that a video VAE starts from."""
    dropout: float = 0.0
    """Dropout probability inside residual blocks."""
    latent_mean: tuple[float, ...] = (0.0,)
    """Mean of the latents, one value or one per channel; `normalize` subtracts it."""
    latent_std: tuple[float, ...] = (1.0,)
    """Standard deviation of the latents, one value or one per channel."""

    def __post_init__(self) -> None:
        if self.branches not in (1, 2):
            raise ValueError(f"branches={self.branches} is not allowed: use 1 (image VAE) or 2")
        if self.z_dim < self.branches or self.z_dim % self.branches:
            raise ValueError(
                f"z_dim={self.z_dim} must be a positive multiple of {self.branches}: "
                "every branch has its own latent channels"
            )
        for name in ("dim", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(
                f"channel_multipliers={self.channel_multipliers} must be positive, one per level"
            )
        if odd := [m * self.dim for m in self.channel_multipliers[1:] if m * self.dim % 2]:
            raise ValueError(
                f"dim * channel_multipliers gives {odd}: upsampling halves the channels, so every "
                "level but the first needs an even number"
            )
        if len(self.temporal_downsample) != len(self.channel_multipliers) - 1:
            raise ValueError(
                f"temporal_downsample={self.temporal_downsample} has "
                f"{len(self.temporal_downsample)} entries, but there are "
                f"{len(self.channel_multipliers) - 1} steps between levels"
            )
        if self.branches == 1 and any(self.temporal_downsample):
            raise ValueError(
                "an image VAE (branches=1) has no temporal_downsample: set all to false"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) not in (1, self.z_dim):
                raise ValueError(
                    f"{name} needs 1 or z_dim={self.z_dim} values, got {getattr(self, name)}"
                )
        if min(self.latent_std) <= 0:
            raise ValueError(f"latent_std={self.latent_std} must be positive")

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent position along height and along width (8)."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def temporal_ratio(self) -> int:
        """Frames per frame group, t_c in the paper (4); 1 for an image VAE."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Frames of a group at each level, e.g. (4, 4, 2, 1)."""
        steps = range(len(self.channel_multipliers))
        return tuple(2 ** sum(self.temporal_downsample[level:]) for level in steps)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of one branch at each level, e.g. (64, 128, 256, 256)."""
        return tuple(self.dim * multiplier for multiplier in self.channel_multipliers)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of all branches together at each level, e.g. (128, 256, 512, 512)."""
        return tuple(self.branches * c for c in self.channels)

    def image(self) -> "VAEConfig":
        """The image VAE that this video VAE is inflated from: one branch alone, z_dim / 2."""
        return replace(
            self,
            z_dim=self.z_dim // self.branches,
            branches=1,
            temporal_downsample=(False,) * len(self.temporal_downsample),
            latent_mean=(0.0,),
            latent_std=(1.0,),
        )

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Latent `c t h w` of a video of `frames` x `height` x `width`.

        Raises:
            ValueError: frames is not 1 + temporal_ratio * n, or a side is no multiple of
            spatial_ratio.
        """
        check_frames(frames, self.temporal_ratio)
        for name, size in (("height", height), ("width", width)):
            _check_multiple(name, size, self.spatial_ratio)
        groups = (frames - 1) // self.temporal_ratio
        return self.z_dim, 1 + groups, height // self.spatial_ratio, width // self.spatial_ratio


def check_frames(frames: int, ratio: int) -> None:
    """Refuse a frame count that is not one image frame plus whole groups of `ratio` frames."""
    if frames < 1 or (frames - 1) % ratio:
        low = max(1, 1 + (frames - 1) // ratio * ratio)
        allowed = f"{low} or {low + ratio}" if frames > 1 else "1"
        raise ValueError(f"{frames} frames, but the VAE needs 1 + {ratio}n. Use {allowed}.")


def _check_multiple(name: str, size: int, ratio: int) -> None:
    if size < ratio or size % ratio:
        low = max(ratio, size // ratio * ratio)
        raise ValueError(
            f"{name} {size}, but the VAE needs a multiple of {ratio}. Use {low} or {low + ratio}."
        )
