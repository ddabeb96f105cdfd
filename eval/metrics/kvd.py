"""Distances by polynomial kernels (MMD) between two feature sets, float64: KVD, and JEDi's."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

from eval.metrics.feature_sets import checked_features

BLOCK = 1024  # rows of a kernel matrix held at once
Kernel = Callable[[ndarray], ndarray]
"""Of the products of feature vectors."""


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
    a, b = checked_features(features_a, features_b)
    n, m = len(a), len(b)

    def kernel(products: ndarray) -> ndarray:
        return (products / a.shape[1] + 1) ** 3

    within_a = (_sum(kernel, a, a) - _diagonal_sum(kernel, a)) / (n * (n - 1))
    within_b = (_sum(kernel, b, b) - _diagonal_sum(kernel, b)) / (m * (m - 1))
    return within_a + within_b - 2 * _sum(kernel, a, b) / (n * m)


def jedi_distance(features_a: Float[ndarray, "n d"], features_b: Float[ndarray, "m d"]) -> float:
    """100 times the squared maximum mean discrepancy with the kernel `(x . y / d)^2`.

    JEDi where the features are those of V-JEPA. The estimate counts each clip with itself, as JEDi
    does: it is never below 0 and its bias falls as 1/N.

    Args:
        features_a, features_b: one row per clip, at least 2.

    Raises:
        ValueError: fewer than 2 rows, widths that differ, or a value that is not finite.

    Source:
        Luo et al. 2024, "Beyond FVD" (degree, no offset, the factor 100: their code).
    """
    a, b = checked_features(features_a, features_b)
    n, m = len(a), len(b)

    def kernel(products: ndarray) -> ndarray:
        return (products / a.shape[1]) ** 2

    within = _sum(kernel, a, a) / n**2 + _sum(kernel, b, b) / m**2
    return 100 * max(within - 2 * _sum(kernel, a, b) / (n * m), 0.0)


def _sum(kernel: Kernel, a: Float64[ndarray, "n d"], b: Float64[ndarray, "m d"]) -> float:
    rows = range(0, len(a), BLOCK)
    return float(sum(kernel(a[row : row + BLOCK] @ b.T).sum() for row in rows))


def _diagonal_sum(kernel: Kernel, a: Float64[ndarray, "n d"]) -> float:
    return float(kernel(np.square(a).sum(axis=1)).sum())
