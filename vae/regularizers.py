"""Terms of training that make latents easier to generate, all off by default.

A term changes what is decoded and what that is compared with, or adds a loss. Weights are relative
to the mean absolute error per pixel and color, so they mean the same at every resolution. What is
drawn follows from the seed, the term and the step, the same for the whole batch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, MinLen
from jaxtyping import Bool, Float
from torch import Tensor, nn

from common.config import Config
from common.local_correlation import local_correlation
from common.seeding import fold, generator
from engine.losses import StepInfo
from vae.base import VideoAutoencoder
from vae.config import Count, LatentConfig, Size
from vae.edits import Edits, scaled
from vae.losses import REFERENCE_VALUES, VAELoss, wide
from vae.posterior import DiagonalGaussian

Weight = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
TINY = 1e-6


@dataclass(frozen=True, kw_only=True)
class ScaleEquivariance(Config):
    """weight * rec(down(x), D(down(z))): a downsampled latent decodes to the downsampled clip.

    Source: Skorokhodov et al. 2025 (arXiv 2502.14831), weight 0.25.
    """

    weight: Weight = 0.25
    """Weight of the second reconstruction, relative to the first."""
    factors: Annotated[tuple[Literal[2, 4], ...], MinLen(1)] = (2, 4)
    """Factors of average pooling, one per step at random of those that divide the latent; in time
    too, after the first frame, where they divide the frame groups."""

    def choices(self, config: LatentConfig, size: Size) -> list[tuple[int, int]]:
        """Factors (time, space) by which a clip of `size` and its latent can both be pooled."""
        frames, height, width = size
        _, t, h, w = config.latent_shape(*size)
        found = []
        for factor in self.factors:
            if h % factor or w % factor:
                continue
            time = factor if t > 1 and (t - 1) % factor == 0 == (frames - 1) % factor else 1
            small = 1 + (frames - 1) // time, height // factor, width // factor
            try:
                fits = config.latent_shape(*small)[1] == 1 + (t - 1) // time
            except ValueError:  # such as frames that a comparator does not take
                fits = False
            found.append((time if fits else 1, factor))
        return found


@dataclass(frozen=True, kw_only=True)
class Equivariance(Config):
    """rec(T x, D(T z)) in place of rec(x, D(z)), T a rotation by quarter turns and a scaling.

    Source: EQ-VAE, Kouzelis et al. 2025 (arXiv 2502.09509).
    """

    probability: Share = 0.5
    """Of a step to be so."""
    min_scale: Annotated[float, Gt(0), Le(1)] = 0.25
    """Smallest scaling of height and width; drawn uniformly from there to 1."""

    def draw(self, seed: int, step: int) -> tuple[int, float] | None:
        """Quarter turns and scale of a step; None: it is as usual."""
        rng = random.Random(fold(seed, "equivariance", step))
        if rng.random() >= self.probability:
            return None
        return rng.randrange(4), rng.uniform(self.min_scale, 1)


@dataclass(frozen=True, kw_only=True)
class LocalCorrelation(Config):
    """weight * relu(threshold - c), c the correlation of neighboring latent positions.

    Source: SSVAE (arXiv 2512.05394), weight 0.02, threshold 0.75. c is that of a process's
    micro-batch, with the channels' statistics over all processes.
    """

    weight: Weight = 0.02
    """Weight of the term."""
    threshold: Annotated[float, Gt(0), Le(1)] = 0.75
    """Correlation from which on the term is 0."""


@dataclass(frozen=True, kw_only=True)
class LatentMasking(Config):
    """Blocks of the latent are replaced by a learned token; the whole clip is reconstructed.

    Source: SSVAE (arXiv 2512.05394); the defaults are theirs at 256 x 256. At 512 x 512:
    probabilities .6, .1, .15, .15 and block 2.
    """

    ratios: Annotated[tuple[Share, ...], MinLen(1)] = (0.0, 0.25, 0.5, 0.75)
    """Shares of blocks to replace, one per step at random."""
    probabilities: Annotated[tuple[Share, ...], MinLen(1)] = (0.7, 0.1, 0.1, 0.1)
    """Probability of each ratio."""
    block: Count = 1
    """Side of a block along t, h and w, in latent positions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.ratios) != len(self.probabilities) or abs(sum(self.probabilities) - 1) > TINY:
            raise ValueError(
                f"probabilities={self.probabilities} must sum to 1, one for each of "
                f"ratios={self.ratios}"
            )

    def mask(self, shape: Size, seed: int, step: int) -> Bool[Tensor, "t h w"]:
        """Which positions of a latent of `shape` the step replaces."""
        rng = random.Random(fold(seed, "masking", step))
        ratio = rng.choices(self.ratios, self.probabilities)[0]
        grid = [-(-side // self.block) for side in shape]
        blocks = grid[0] * grid[1] * grid[2]
        order = torch.randperm(blocks, generator=generator(seed, "masked blocks", step))
        mask = (order < round(ratio * blocks)).view(*grid)
        for axis in range(3):
            mask = mask.repeat_interleave(self.block, axis)
        return mask[: shape[0], : shape[1], : shape[2]]


@dataclass(frozen=True, kw_only=True)
class PredictedGroups(Config):
    """The latents of the last frame groups are replaced by the learned token; the decoder predicts
    the groups from those before.

    After PV-VAE (arXiv 2605.02134); the draw is ours.
    """

    probability: Share = 0.5
    """Of a step to be so."""
    max_groups: Count = 1
    """Most groups to drop, a number from 1 to this drawn per step; the first frame stays."""

    def mask(self, shape: Size, seed: int, step: int) -> Bool[Tensor, "t h w"]:
        """Which positions of a latent of `shape` the step replaces."""
        rng = random.Random(fold(seed, "predicted groups", step))
        dropped = rng.randint(1, self.max_groups) if rng.random() < self.probability else 0
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[max(1, shape[0] - dropped) :] = True
        return mask


@dataclass(frozen=True, kw_only=True)
class FrameDifference(Config):
    """weight * mean |(x[t+1] - x[t]) - (y[t+1] - y[t])|, y the reconstruction.

    Source: PV-VAE (arXiv 2605.02134).
    """

    weight: Weight = 1.0
    """Weight of the term."""

    def __call__(
        self, reconstruction: Float[Tensor, "b 3 t h w"], video: Float[Tensor, "b 3 t h w"]
    ) -> Float[Tensor, ""]:
        """The mean, without the weight; needs two frames."""
        return (wide(reconstruction) - wide(video)).diff(dim=2).abs().mean()


@dataclass(frozen=True, kw_only=True)
class RegularizerConfig(Config):
    """Which terms are on; null: off. `{}` takes a term's defaults."""

    scale_equivariance: ScaleEquivariance | None = None
    """Downsampled latents decode to downsampled clips."""
    equivariance: Equivariance | None = None
    """Turned and scaled latents decode to turned and scaled clips (EQ-VAE)."""
    local_correlation: LocalCorrelation | None = None
    """Neighboring latent positions correlate."""
    masking: LatentMasking | None = None
    """Blocks of the latent are hidden from the decoder."""
    predicted_groups: PredictedGroups | None = None
    """The last groups are hidden from the decoder."""
    frame_difference: FrameDifference | None = None
    """Differences of frames are reconstructed."""

    def check(self, config: LatentConfig, size: Size) -> tuple[Size, Size]:
        """Refuse clips that a term cannot work with.

        Returns: the smallest clip that is compared in place of one of `size`, and the smallest that
        any term compares.
        Raises: ValueError, naming the term.
        """
        h, w = config.latent_shape(*size)[2:]
        main = least = size
        if self.equivariance is not None:
            height, width = scaled((h, w), self.equivariance.min_scale)
            main = least = size[0], height * config.spatial_ratio, width * config.spatial_ratio
        if self.scale_equivariance is not None:
            choices = self.scale_equivariance.choices(config, size)
            if not choices:
                raise ValueError(
                    f"regularizers.scale_equivariance: none of factors="
                    f"{self.scale_equivariance.factors} divides the {h} x {w} latent of a clip of "
                    f"{size[1]} x {size[2]}"
                )
            factor = max(space for _, space in choices)
            least = size[0], min(least[1], size[1] // factor), min(least[2], size[2] // factor)
        if self.local_correlation is not None and min(h, w) < 2:
            raise ValueError(
                f"regularizers.local_correlation needs a latent of at least 2 x 2, a clip of "
                f"{size[1]} x {size[2]} has {h} x {w}"
            )
        return main, least


class Regularizers:
    """The terms of a run: what a step edits, and what its loss adds to Eq. 5."""

    def __init__(self, config: RegularizerConfig, model: VideoAutoencoder):
        """`model`: not wrapped; it gets a token where a term needs one."""
        self.config = config
        self.latent: LatentConfig = model.config
        if (config.masking or config.predicted_groups) and model.mask_token is None:
            model.mask_token = nn.Parameter(torch.zeros(self.latent.z_dim, 1, 1, 1))

    def edits(self, size: Sequence[int], info: StepInfo) -> Edits:
        """What this step does to clips of `size` and their latents."""
        config, seed, step = self.config, info.seed, info.step
        frames, height, width = size
        shape = self.latent.latent_shape(frames, height, width)[1:]
        turn = None if config.equivariance is None else config.equivariance.draw(seed, step)
        if turn is not None:
            h, w = scaled(shape[1:], turn[1])
            shape = (shape[0], w, h) if turn[0] % 2 else (shape[0], h, w)
        masks = [
            term.mask(shape, seed, step)
            for term in (config.masking, config.predicted_groups)
            if term is not None
        ]
        down = None
        if config.scale_equivariance is not None:
            rng = random.Random(fold(seed, "scale equivariance", step))
            down = rng.choice(
                config.scale_equivariance.choices(self.latent, (frames, height, width))
            )
        return Edits(
            frames=frames,
            ratio=self.latent.spatial_ratio,
            turn=turn,
            mask=torch.stack(masks).any(0) if masks else None,
            down=down,
        )

    def terms(
        self,
        loss: VAELoss,
        reconstructions: Sequence[Tensor],
        videos: Sequence[Tensor],
        posterior: DiagonalGaussian,
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms that are on, without their weights, and "loss", what they add to Eq. 5.

        Args:
            reconstructions, videos: `b 3 t h w`; the clip's and, with scale equivariance, the
                downsampled one's.

        Returns:
            Scalars; "loss" in the unit of Eq. 5, a mean error times `REFERENCE_VALUES`.
        """
        config = self.config
        values: dict[str, Tensor] = {"loss": torch.zeros((), device=posterior.mean.device)}
        if config.scale_equivariance is not None:
            downsampled = loss.reconstruction(reconstructions[1], videos[1])["loss"]
            values["scale_equivariance"] = downsampled / REFERENCE_VALUES
            values["loss"] = values["loss"] + config.scale_equivariance.weight * downsampled
        if config.local_correlation is not None:
            term = config.local_correlation
            values["local_correlation"] = local_correlation(posterior.mode(), over_processes=True)
            short = F.relu(term.threshold - values["local_correlation"])
            values["loss"] = values["loss"] + REFERENCE_VALUES * term.weight * short
        if config.frame_difference is not None and videos[0].shape[2] > 1:
            term = config.frame_difference
            values["frame_difference"] = term(reconstructions[0], videos[0])
            added = REFERENCE_VALUES * term.weight * values["frame_difference"]
            values["loss"] = values["loss"] + added
        return values
