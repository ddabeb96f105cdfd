"""Kernel Video Distance: unbiased polynomial-kernel MMD between two feature sets, in float64."""

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

BLOCK = 1024  # rows of a kernel matrix held at once


def kernel_distance(features_a: Float[ndarray, "n d"], features_b: Float[ndarray, "m d"]) -> float:
    """Squared maximum mean discrepancy with the kernel `(x . y / d + 1)^3`.

    Unbiased for any number of clips, where the Fréchet distance is not; so a set against itself
    drawn anew gives 0 on average, and single values may be below 0.

    Args:
        features_a, features_b: one row per clip, at least 2.

    Returns:
        Squared kernel units; comparable only for features of one network.

    Raises:
        ValueError: fewer than 2 rows, widths that differ, or a value that is not finite.

    Source:
        Binkowski et al. 2018, Eq. 4 (for videos: Unterthiner et al. 2018).
    """
    a, b = _checked(features_a), _checked(features_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features of {a.shape[1]} and of {b.shape[1]} dimensions cannot be compared. "
            "Use the same network for both sets."
        )
    n, m = len(a), len(b)
    within_a = (_kernel_sum(a, a) - _diagonal_sum(a)) / (n * (n - 1))
    within_b = (_kernel_sum(b, b) - _diagonal_sum(b)) / (m * (m - 1))
    return within_a + within_b - 2 * _kernel_sum(a, b) / (n * m)


def _kernel_sum(a: Float64[ndarray, "n d"], b: Float64[ndarray, "m d"]) -> float:
    rows = range(0, len(a), BLOCK)
    return float(sum(_kernel(a[row : row + BLOCK] @ b.T, a.shape[1]).sum() for row in rows))


def _diagonal_sum(a: Float64[ndarray, "n d"]) -> float:
    return float(_kernel(np.square(a).sum(axis=1), a.shape[1]).sum())


def _kernel(products: Float64[ndarray, "..."], dimensions: int) -> Float64[ndarray, "..."]:
    return (products / dimensions + 1) ** 3


def _checked(features: ndarray) -> Float64[ndarray, "n d"]:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {features.shape}: need at least 2 rows, one per clip")
    if not np.isfinite(features).all():
        raise ValueError("features are not finite. Check the clips and the network.")
    return features.astype(np.float64)
