"""What defines a VAE: one frozen dataclass, kept with the weights."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt, MinLen
from torch import Tensor

from common.config import Config

Size = tuple[int, int, int]
"""Frames, height, width."""
Count = Annotated[int, Ge(1), Le(65_536)]
LatentStd = tuple[Annotated[float, Gt(0)], ...]
Temporal = Literal["group_causal", "causal"]
BranchConvs = Literal["2d3d", "3d3d"]


@dataclass(frozen=True, kw_only=True)
class LatentConfig(Config):
    """How latents relate to videos: what the configs of all video autoencoders have in common."""

    z_dim: Count = 16
    """Latent channels."""
    latent_mean: tuple[float, ...] = (0.0,)
    """Mean of the latents, one value or one per channel; `normalize` subtracts it."""
    latent_std: LatentStd = (1.0,)
    """Standard deviation of the latents, one value or one per channel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent_mean", "latent_std"):
            values = getattr(self, name)
            if len(values) not in (1, self.z_dim):
                raise ValueError(f"{name}={values} must have 1 or z_dim={self.z_dim} values")

    def statistics(self, z: Tensor) -> list[Tensor]:
        """Mean and standard deviation of the latents, to broadcast over `b z t h w`."""
        return [
            torch.tensor(values, dtype=z.dtype, device=z.device).view(-1, 1, 1, 1)
            for values in (self.latent_mean, self.latent_std)
        ]

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent position along height and along width."""
        return 8

    @property
    def temporal_ratio(self) -> int:
        """Frames per latent frame."""
        return 4

    @property
    def first_frames(self) -> int:
        """Frames that the first latent frame stands for: 1, an image."""
        return 1

    @property
    def frame_step(self) -> int:
        """A video has first_frames + frame_step * n frames."""
        return self.temporal_ratio

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Latent `c t h w` of a video of `frames` x `height` x `width`.

        Raises:
            ValueError: frames or a side that the model does not take; names the nearest allowed.
        """
        self.check_frames(frames)
        side = self.spatial_ratio
        for name, size in (("height", height), ("width", width)):
            if size < side or size % side:
                low = max(side, size // side * side)
                raise ValueError(
                    f"{name} {size}, but the VAE needs a multiple of {side}. "
                    f"Use {low} or {low + side}."
                )
        return self.z_dim, self.latent_frames(frames), height // side, width // side

    def check_frames(self, frames: int) -> None:
        """Refuse (`ValueError`) a number of frames that the model does not take, with the nearest
        allowed.
        """
        first, step = self.first_frames, self.frame_step
        if frames < first or (frames - first) % step:
            low = max(first, first + (frames - first) // step * step)
            allowed = f"{low} or {low + step}" if frames > first else f"{first}"
            raise ValueError(
                f"{frames} frames, but the VAE needs {first} + {step}n. Use {allowed}."
            )

    def valid_frames(self, frames: int) -> int:
        """The allowed number of frames that is nearest to `frames`, the smaller of two."""
        first, step = self.first_frames, self.frame_step
        return first + max(0, -(-(frames - first - step // 2) // step)) * step

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a video of `frames`."""
        return 1 + (frames - self.first_frames) // self.temporal_ratio

    def decoded_frames(self, latent_frames: int) -> int:
        """Frames that `latent_frames` are decoded to where the video's own number is not known."""
        return self.first_frames + (latent_frames - 1) * self.temporal_ratio

    def decoded_size(self, z: Tensor, frames: int | None = None) -> Size:
        """Frames, height and width of the video that a latent decodes to.

        `frames` of that video, where they are known: the VAE of Open-Sora decodes the same latents
        to one of four numbers.
        """
        t, h, w = z.shape[2:]
        side = self.spatial_ratio
        return self.decoded_frames(t) if frames is None else frames, h * side, w * side


@dataclass(frozen=True, kw_only=True)
class VAEConfig(LatentConfig):
    """Architecture of a VAE; the defaults are the released IV-VAE (z 16, dim 64).

    One class covers the paper's whole ablation; `VAEConfig.preset` names its rows.
    """

    z_dim: Count = 16
    """Latent channels; with two branches half of them describe keyframes, half motion."""
    dim: Count = 64
    """Channels of one branch at the first level."""
    channel_multipliers: Annotated[tuple[Count, ...], MinLen(1)] = (1, 2, 4, 4)
    """Channels per level in units of dim; between levels height and width halve."""
    num_blocks: Annotated[int, Ge(1), Le(100)] = 2
    """Residual blocks per encoder level; a decoder level has one more."""
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    """Which of the steps between levels halve the frames of a group too."""
    branches: Literal[1, 2] = 2
    """2: keyframe and motion branch (KTC unit); 1: the baseline, or an image VAE, which is one
    branch without temporal_downsample."""
    temporal: Temporal = "group_causal"
    """How convolutions join frames: in both directions inside a group (GCConv), or backward only,
    over the two frames before."""
    tmpe: bool = True
    """Temporal motion perception enhancement: parallel atrous convolutions (PAC) at the encoder's
    head and attention at the deepest level; without, a plain head and two attentions in all."""
    branch_convs: BranchConvs = "2d3d"
    """Convolutions of the two branches: the keyframe branch's is 2D, or 3D like the motion
    branch's."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout probability inside residual blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z_dim % self.branches:
            allowed = f"{self.z_dim - 1} or {self.z_dim + 1}" if self.z_dim > 1 else "2"
            raise ValueError(
                f"z_dim={self.z_dim} must be even, because each of the two branches has half of "
                f"the latent channels: use {allowed}"
            )
        if odd := [m * self.dim for m in self.channel_multipliers[1:] if m * self.dim % 2]:
            raise ValueError(
                f"dim * channel_multipliers gives {odd}: upsampling halves the channels, so every "
                "level but the first needs an even number"
            )
        pattern, steps = self.temporal_downsample, len(self.channel_multipliers) - 1
        if len(pattern) != steps:
            raise ValueError(
                f"temporal_downsample={pattern}: give {steps} values, True or False, one for each "
                "of the steps between levels"
            )
        if self.branches == 2 and not any(pattern):
            raise ValueError(
                f"temporal_downsample={pattern} never halves time, which two branches are for: "
                "make a value True, or use branches=1, an image VAE"
            )
        if self.branches == 1 and self.branch_convs != "2d3d":
            raise ValueError(
                f"branch_convs={self.branch_convs!r} is for two branches, but branches=1"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "VAEConfig":
        """A row of the paper's ablation, or a released model, with `changes` to its fields.

        `baseline` (A), `baseline_gcconv` (B), `ktc` (C), `ktc_gcconv` (D), `ivvae` (E),
        `ivvae_3d3d` (F), `ivvae_dim96`.

        Raises:
            ValueError: unknown name, or changes that do not fit.
        """
        if name not in PRESETS:
            raise ValueError(f"no VAE preset {name!r}: use one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @property
    def is_image(self) -> bool:
        """Whether frames are never joined: an image VAE."""
        return self.temporal_ratio == 1

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
        """The image VAE that this video VAE is inflated from: one branch alone.

        It has z_dim / 2 latent channels where the video VAE has two branches (the paper's choice),
        and z_dim where it has one ("regular" initialization, which the paper argues against).
        """
        return replace(
            self,
            z_dim=self.z_dim // self.branches,
            branches=1,
            temporal="group_causal",
            branch_convs="2d3d",
            temporal_downsample=(False,) * len(self.temporal_downsample),
            latent_mean=(0.0,),
            latent_std=(1.0,),
        )


PRESETS: dict[str, dict[str, Any]] = {
    "baseline": {"branches": 1, "dim": 96, "temporal": "causal", "tmpe": False},
    "baseline_gcconv": {"branches": 1, "dim": 96, "tmpe": False},
    "ktc": {"temporal": "causal", "tmpe": False},
    "ktc_gcconv": {"tmpe": False},
    "ivvae": {},
    "ivvae_3d3d": {"branch_convs": "3d3d"},
    "ivvae_dim96": {"dim": 96},
}
"""The paper's ablation rows and the larger released model, as changes to the defaults."""
