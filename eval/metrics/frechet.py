"""Fréchet distance between Gaussians fitted to two feature sets, in float64."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64
from numpy import ndarray

from eval.metrics.feature_sets import checked_features

POINTS = 15  # of the regression to infinitely many clips


def moments(
    features: Float[ndarray, "n d"],
) -> tuple[Float64[ndarray, " d"], Float64[ndarray, "d d"]]:
    """Mean and covariance of a feature set, float64; the covariance is divided by N.

    Args:
        features: one row per clip, any float type.

    Returns:
        Mean `(d,)` and covariance `(d, d)`.

    Raises:
        ValueError: not a matrix, fewer than 2 rows, or a value that is not finite.

    Source:
        Division by N, not N - 1: the StyleGAN-V protocol (Skorokhodov et al. 2022).
    """
    (values,) = checked_features(features)
    mean = values.mean(axis=0)
    centered = values - mean
    return mean, centered.T @ centered / len(values)


def frechet_distance(
    mean_a: Float[ndarray, " d"],
    cov_a: Float[ndarray, "d d"],
    mean_b: Float[ndarray, " d"],
    cov_b: Float[ndarray, "d d"],
) -> float:
    """Squared Fréchet distance between two Gaussians.

    `|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))`. With `cov = R^T R`, the trace
    of the root is the sum of the singular values of `R_a R_b^T`: nothing complex can appear, and
    singular covariances need no offset. Eigenvalues that rounding alone can make count as 0.
    `frechet_from_features` has no such eigenvalues and is exact to rounding for any covariance.

    Args:
        mean_a, mean_b: means `(d,)`.
        cov_a, cov_b: symmetric positive semi-definite covariances `(d, d)`.

    Returns:
        Squared feature units; 0 for equal moments (up to rounding, never below 0).

    Raises:
        ValueError: shapes do not fit each other, or a moment is not finite.

    Source:
        Dowson and Landau 1982; Unterthiner et al. 2018 (FVD).
    """
    mean_a, cov_a = _checked("first", mean_a, cov_a)
    mean_b, cov_b = _checked("second", mean_b, cov_b)
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            f"moments of {len(mean_a)} and of {len(mean_b)} dimensions cannot be compared. Use the "
            "same network for both sets."
        )
    roots = []
    for cov in (cov_a, cov_b):
        eigenvalues, vectors = scipy.linalg.eigh(cov)
        rounding = len(cov) * np.finfo(np.float64).eps * abs(eigenvalues[-1])
        kept = eigenvalues > rounding
        roots.append((vectors[:, kept] * np.sqrt(eigenvalues[kept])).T)  # R: rank d
    return _distance(mean_a, mean_b, *roots)


def frechet_from_features(
    features_a: Float[ndarray, "n d"], features_b: Float[ndarray, "m d"]
) -> float:
    """Fréchet distance between two feature sets, each pooled whole: see `moments`.

    Centered features over the root of their number are roots of the covariances, so that these are
    never formed: the distance is exact to rounding with fewer clips than dimensions, too. There is
    no per-batch variant: averaging the distances of batches measures the batch size.
    """
    means, roots = [], []
    for x in checked_features(features_a, features_b):
        count, d = x.shape
        means.append(x.mean(axis=0))
        root = x - means[-1]
        if count > d:  # the triangular factor of a QR decomposition is as good, with d rows
            root = scipy.linalg.qr(root, mode="r")[0][:d]
        roots.append(root / np.sqrt(count))
    return _distance(*means, *roots)


def bootstrap_error(
    features_a: Float[ndarray, "n d"],
    features_b: Float[ndarray, "m d"],
    *,
    distance: Callable[[ndarray, ndarray], float] = frechet_from_features,
    resamples: int,
) -> float:
    """Standard deviation of a distance over bootstrap resamples of both sets.

    Only the spread is meaningful: the mean over resamples is biased upwards (duplicates shrink the
    covariances), so percentile intervals would miss the point estimate.

    Args:
        features_a, features_b: one row per clip.
        distance: of two sets.
        resamples: number of redrawn pairs, at least 2.

    Returns:
        Standard deviation in the unit of the distance.

    Raises:
        ValueError: fewer than 2 resamples.
    """
    if resamples < 2:
        raise ValueError(f"resamples={resamples} must be at least 2")
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(resamples):
        a = features_a[rng.integers(len(features_a), size=len(features_a))]
        b = features_b[rng.integers(len(features_b), size=len(features_b))]
        distances.append(distance(a, b))
    return float(np.std(distances, ddof=1))


class Extrapolated(NamedTuple):
    """A value at infinitely many clips."""

    value: float
    """Intercept of the regression; may fall below 0 by chance."""
    error: float
    """Standard error of the intercept: of this regression, not of other clips."""
    sizes: list[int]
    """Clips per set of each point."""


def frechet_infinity(
    features_a: Float[ndarray, "n d"], features_b: Float[ndarray, "m d"]
) -> Extrapolated | None:
    """The distance without its bias: regressed on 1/N and read off at 1/N = 0.

    Distances of 15 subsets of both sets, equally large, drawn without replacement, their
    sizes evenly spaced in 1/N between a quarter of the clips and all of them (512 to 2048).

    Returns:
        None where a quarter of the clips are no more than the dimensions: covariances are singular
        then, and the bias is no line in 1/N.

    Source:
        Chong and Forsyth 2020.
    """
    count = min(len(features_a), len(features_b))
    if count // 4 <= features_a.shape[1]:
        return None
    rng = np.random.default_rng(0)
    sizes = [round(1 / inverse) for inverse in np.linspace(4 / count, 1 / count, POINTS)]
    distances = []
    for size in sizes:
        a, b = (f[rng.permutation(len(f))[:size]] for f in (features_a, features_b))
        distances.append(frechet_from_features(a, b))
    (_, intercept), covariance = np.polyfit(1 / np.array(sizes), distances, 1, cov=True)
    return Extrapolated(float(intercept), float(np.sqrt(covariance[1, 1])), sizes)


def _distance(mean_a: ndarray, mean_b: ndarray, root_a: ndarray, root_b: ndarray) -> float:
    """Distance of Gaussians with covariances `root^T root`."""
    squared = np.sum((mean_a - mean_b) ** 2)
    traces = np.sum(root_a**2) + np.sum(root_b**2)
    overlap = np.sum(scipy.linalg.svdvals(root_a @ root_b.T))
    return max(float(squared + traces - 2 * overlap), 0.0)


def _checked(name: str, mean: ndarray, cov: ndarray) -> tuple[ndarray, ndarray]:
    mean, cov = np.asarray(mean, dtype=np.float64), np.asarray(cov, dtype=np.float64)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{name} set: mean {mean.shape} and covariance {cov.shape} must be (d,) and (d, d)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"{name} set: a moment is not finite. Check the features it came from.")
    return mean, cov
