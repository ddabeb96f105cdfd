"""How easy latents are to generate: their spectrum, their channels, their course in time.

All measures bring each channel to zero mean and unit variance over the set first, as a generator
sees it; a channel that never changes counts as 0.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import scipy.linalg
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from numpy import ndarray

from common.local_correlation import local_correlation

LOW = 0.25
"""Radial frequency up to which the low-frequency share counts, in shares of the largest."""
BINS = 8
"""Of equal width, over the radial frequencies."""
VARIANCE = 0.9
"""Share of the variance that the counted channel modes hold."""
PAST = 2
"""Latent frames, at most, that the next one is predicted from."""
REACH = 1
"""Positions around a place, in each direction, that its prediction reads."""
RIDGE = 1e-3
"""Penalty of the ridge regression, per sample, of features of unit variance."""


class Spectrum(NamedTuple):
    """Power by radial frequency."""

    frequency: Float64[ndarray, " k"]
    """Middle of each bin in which the size has frequencies; 1 is half a cycle per position along
    every axis."""
    power: Float64[ndarray, " k"]
    """Mean square of the bin's coefficients; white noise has 1 everywhere."""
    low_share: float
    """Share of the whole power at radial frequencies up to `LOW`."""


class ChannelModes(NamedTuple):
    """Eigenvalues of the covariance over channels."""

    modes: int
    """Fewest modes that hold 90 % of the variance."""
    participation_ratio: float
    """(sum l)^2 / sum l^2: k for k modes of equal power."""


def spectrum(x: Float[ndarray, "n c t h w"]) -> Spectrum:
    """Power of the orthonormal DCT over time, height and width, by radial frequency.

    A coefficient's radial frequency is the root of the mean, over the axes longer than 1, of
    (k / size)^2. Means over positions (frequency 0) count as low.

    Args:
        x: latents, or videos, of one size.

    Raises:
        ValueError: nothing varies, or a value is not finite.

    Source: Skorokhodov et al. 2025 (arXiv 2502.14831) compare latents and pixels by their DCT.
    """
    sizes = x.shape[2:]
    shares = [k / size for k, size in zip(np.indices(sizes), sizes, strict=True)]
    radius = np.sqrt(np.sum(np.square(shares), axis=0) / max(1, sum(size > 1 for size in sizes)))
    mean, scale = _statistics(x)
    power = np.zeros(sizes)
    for clip in x:
        coefficients = scipy.fft.dctn((clip - mean) * scale, axes=(1, 2, 3), norm="ortho")
        power += np.square(np.asarray(coefficients)).sum(axis=0)
    power /= len(x) * x.shape[1]
    bins = np.minimum((radius * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins.ravel(), minlength=BINS)
    sums = np.bincount(bins.ravel(), power.ravel(), minlength=BINS)
    found = counts > 0
    return Spectrum(
        frequency=((np.arange(BINS) + 0.5) / BINS)[found],
        power=sums[found] / counts[found],
        low_share=float(power[radius <= LOW].sum() / power.sum()),
    )


def channel_modes(x: Float[ndarray, "n c t h w"]) -> ChannelModes:
    """How many directions of the channels carry the variance, over clips and positions.

    Args:
        x: raw latents, which are normalized per channel here.

    Raises:
        ValueError: nothing varies, or a value is not finite.
    """
    mean, scale = _statistics(x)
    channels = x.shape[1]
    covariance = np.zeros((channels, channels))
    for clip in x:
        values = ((clip - mean) * scale).reshape(channels, -1)
        covariance += values @ values.T
    powers = np.linalg.eigvalsh(covariance)[::-1].clip(min=0)
    shares = np.cumsum(powers) / powers.sum()
    # rounding must not ask for a mode more
    modes = int(np.searchsorted(shares, VARIANCE - 1e-9)) + 1
    return ChannelModes(modes, float(powers.sum() ** 2 / np.square(powers).sum()))


def predictability(x: Float[ndarray, "n c t h w"]) -> float | None:
    """Held-out R^2 of the next latent frame, linearly predicted from those before.

    A ridge regression reads all channels of the last two frames, or of the only one before, within
    one position; it is fitted on every second clip and scored on the others. 1: determined, 0: no
    better than the mean; noise is slightly below 0. A first-order process of correlation r has r^2.

    Returns: None for latents of a single frame.

    Raises:
        ValueError: a single clip, nothing varies, or a value is not finite.
    """
    if x.shape[2] < 2:
        return None
    if len(x) < 2:
        raise ValueError("predictability needs at least two clips: one to fit, one to score")
    mean, scale = _statistics(x)
    fitted, scored = ([(clip - mean) * scale for clip in x[first::2]] for first in (0, 1))

    # Fit
    width = x.shape[1] * min(PAST, x.shape[2] - 1) * (2 * REACH + 1) ** 2 + 1
    gram, products, count = np.zeros((width, width)), np.zeros((width, x.shape[1])), 0
    for features, targets in _transitions(fitted):
        gram += features.T @ features
        products += features.T @ targets
        count += len(features)
    penalty = RIDGE * count * np.eye(width)
    weights = scipy.linalg.solve(gram + penalty, products, assume_a="pos")

    # Score
    errors, sums, squares, count = 0.0, 0.0, 0.0, 0
    for features, targets in _transitions(scored):
        errors += np.square(targets - features @ weights).sum()
        sums = sums + targets.sum(axis=0)
        squares += np.square(targets).sum()
        count += len(targets)
    return float(1 - errors / (squares - np.square(sums).sum() / count))


def diffusability_card(
    latents: Float32[ndarray, "n c t h w"],
    videos: UInt8[ndarray, "n 3 t2 h2 w2"] | None,
    *,
    denoiser: Mapping[str, float],
    decoder: Mapping[str, float],
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    """The card, for JSON.

    Args:
        latents: means of the posteriors, raw or normalized.
        videos: the clips behind them, for their spectrum beside that of the latents.
        denoiser: losses of `latte.tiny_denoiser`.
        decoder: `vae.decoder_measures`; empty without the VAE.
        protocol: what was measured, and with which budget.

    Returns:
        `measures`, name to number, and `spectra`: of latents and pixels, frequency and power.

    Raises:
        ValueError: latents that cannot be measured, such as constant or a single clip.
    """
    of_latents, modes = spectrum(latents), channel_modes(latents)
    spectra = {"latents": of_latents}
    measures: dict[str, float] = {
        "low_frequency_share": of_latents.low_share,
        "modes_90": modes.modes,
        "participation_ratio": modes.participation_ratio,
        "local_correlation": local_correlation(torch.from_numpy(latents)).item(),
    }
    if videos is not None:
        spectra["pixels"] = spectrum(videos)
        measures["pixel_low_frequency_share"] = spectra["pixels"].low_share
    if (predicted := predictability(latents)) is not None:
        measures["predictability"] = predicted
    measures |= {f"denoiser_{name}": value for name, value in denoiser.items()}
    return {
        "kind": "diffusability",
        "protocol": {**protocol, "clips": len(latents), "latent_shape": latents.shape[1:]},
        "measures": {**measures, **decoder},
        "spectra": {
            name: {"frequency": found.frequency.tolist(), "power": found.power.tolist()}
            for name, found in spectra.items()
        },
    }


def _transitions(clips: list[ndarray]) -> Iterator[tuple[ndarray, ndarray]]:
    """Of each clip and each of its frames that has enough before it: features `positions d`, the
    last a 1, and targets `positions c`."""
    for clip in clips:
        channels, frames, height, width = clip.shape
        past = min(PAST, frames - 1)
        padded = np.pad(clip, ((0, 0), (0, 0), (REACH, REACH), (REACH, REACH)))
        places = product(range(2 * REACH + 1), repeat=2)
        shifted = [padded[:, :, i : i + height, j : j + width] for i, j in places]
        for now in range(past, frames):
            before = [each[:, now - past : now].reshape(-1, height * width) for each in shifted]
            ones = np.ones((1, height * width))
            yield np.concatenate([*before, ones]).T, clip[:, now].reshape(channels, -1).T


def _statistics(x: ndarray) -> tuple[Float64[ndarray, "c 1 1 1"], Float64[ndarray, "c 1 1 1"]]:
    """Mean of each channel, and what brings its deviation to 1; 0 for one that never changes."""
    if x.ndim != 5 or not x.size:
        raise ValueError(f"got values of shape {x.shape}; need n c t h w, none of them 0")
    mean = x.mean(axis=(0, 2, 3, 4), dtype=np.float64)[:, None, None, None]
    variance = np.mean([np.square(clip - mean).mean(axis=(1, 2, 3)) for clip in x], axis=0)
    if not np.isfinite(variance).all():
        raise ValueError("the values are not finite. Check the latents and the VAE.")
    if not variance.any():
        raise ValueError("all values of each channel are equal: nothing to measure")
    std = np.sqrt(variance)
    scale = np.divide(1, std, out=np.zeros_like(std), where=std > 1e-12 * std.max())
    return mean, scale[:, None, None, None]
