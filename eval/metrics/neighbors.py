"""What nearest neighbors in feature space tell: fidelity, diversity, memorized training clips."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy import ndarray

from eval.metrics.feature_sets import checked_features

BLOCK = 1024  # rows of a distance matrix held at once


class Nearest(NamedTuple):
    """The nearest reference of each query."""

    distances: Float64[ndarray, " n"]
    """Euclidean, in units of the features."""
    indices: Int64[ndarray, " n"]
    """Which reference; the first of equally near ones."""


class Coverage(NamedTuple):
    """How generated clips lie among real ones; shares in [0, 1], but density may exceed 1."""

    precision: float
    """Share of generated clips inside the real manifold: how real they look."""
    recall: float
    """Share of real clips inside the generated manifold: how much of the data is made."""
    density: float
    """Mean number of real neighborhoods around a generated clip, over k: precision that single
    outliers among the real clips do not raise."""
    coverage: float
    """Share of real clips whose neighborhood has a generated clip."""


class Memorization(NamedTuple):
    """Whether generated clips are nearer to the training clips than new real clips are."""

    share: float
    """Generated clips nearer than `threshold`; a model that memorizes nothing gives `level`."""
    level: float
    """Share of held-out clips nearer than `threshold`."""
    threshold: float
    """Distance in units of the features."""
    nearest: Nearest
    """Of each generated clip among the training clips."""

    @property
    def worst(self) -> Int64[ndarray, " n"]:
        """Indices of the generated clips, the one nearest to a training clip first."""
        return np.argsort(self.nearest.distances, kind="stable")


def nearest_clips(queries: Float[ndarray, "n d"], references: Float[ndarray, "m d"]) -> Nearest:
    """The reference clip that is nearest to each query clip.

    Args:
        queries, references: one feature vector per clip, of one network.

    Raises:
        ValueError: no references, widths that differ, or a value that is not finite.
    """
    indices = np.concatenate([block.argmin(axis=1) for block in _distances(queries, references)])
    # Distances anew, by differences: copies are at 0 exactly
    gaps = queries.astype(np.float64) - references[indices].astype(np.float64)
    return Nearest(np.sqrt(np.square(gaps).sum(axis=1)), indices)


def memorization(
    generated: Float[ndarray, "n d"],
    training: Float[ndarray, "m d"],
    held_out: Float[ndarray, "k d"],
    *,
    level: float = 0.05,
) -> Memorization:
    """Share of generated clips that are as near to a training clip as few held-out clips are.

    The threshold is the `level`-quantile of the held-out clips' distances to their nearest training
    clip. Copies give a share far above `level`; a share below says nothing against a model.

    Args:
        generated, training, held_out: one feature vector per clip, of one network. The held-out
            clips are real and were not trained on, and should come from other videos.
        level: of held-out clips, in (0, 1).

    Raises:
        ValueError: fewer than 1 / level held-out clips, widths that differ, values not finite.
    """
    if len(held_out) * level < 1:
        raise ValueError(
            f"{len(held_out)} held-out clips cannot show what {level:g} of them are: give at least "
            f"{int(np.ceil(1 / level))}"
        )
    usual = nearest_clips(held_out, training).distances
    threshold = float(np.quantile(usual, level))
    found = nearest_clips(generated, training)
    return Memorization(
        share=float(np.mean(found.distances < threshold)),
        level=float(np.mean(usual < threshold)),
        threshold=threshold,
        nearest=found,
    )


def coverage(
    real: Float[ndarray, "n d"], generated: Float[ndarray, "m d"], *, k: int = 5
) -> Coverage:
    """Precision, recall, density and coverage with neighborhoods of the `k` nearest clips.

    Args:
        real, generated: one feature vector per clip, of one network; more than `k` of each.
        k: neighbors that make the radius of a neighborhood, within its own set.

    Raises:
        ValueError: too few clips, widths that differ, or a value that is not finite.

    Source:
        Kynkäänniemi et al. 2019 (precision, recall); Naeem et al. 2020 (density, coverage; k = 5).
    """
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= k:
            raise ValueError(f"{len(features)} {name} clips, but neighborhoods of {k} need {k + 1}")
    # Radii: each set's distance to the k-th neighbor, itself not counted
    radii_real, radii_generated = (
        np.concatenate([np.partition(block, k, axis=1)[:, k] for block in _distances(x, x)])
        for x in (real, generated)
    )
    # One pass over the distances of generated to real clips
    inside, hits = [], []
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    first = 0
    for block in _distances(generated, real):
        within = block < radii_real
        inside.append(within.any(axis=1))
        hits.append(within.sum(axis=1))
        covered |= within.any(axis=0)
        recalled |= (block < radii_generated[first : first + len(block), None]).any(axis=0)
        first += len(block)
    return Coverage(
        precision=float(np.concatenate(inside).mean()),
        recall=float(recalled.mean()),
        density=float(np.concatenate(hits).mean() / k),
        coverage=float(covered.mean()),
    )


def _distances(a: ndarray, b: ndarray) -> Iterator[Float64[ndarray, "rows m"]]:
    """Euclidean distances of `a` to `b`, by blocks of rows of `a`, float64."""
    x, y = checked_features(a, b, least=1)
    center = y.mean(axis=0)  # far from 0, the difference of squares rounds badly
    x, y = x - center, y - center
    norms = np.square(y).sum(axis=1)
    for row in range(0, len(x), BLOCK):
        rows = x[row : row + BLOCK]
        squared = np.square(rows).sum(axis=1)[:, None] + norms - 2 * rows @ y.T
        yield np.sqrt(squared.clip(min=0))
