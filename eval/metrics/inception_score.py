"""Inception Score of class probabilities, and the largest value a protocol can give."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import entr, xlogy

TRIALS = 20  # simulated draws that `max_inception_score` averages


class InceptionScore(NamedTuple):
    """Score over splits."""

    mean: float
    """Mean over the splits; between 1 and the number of classes."""
    std: float
    """Population standard deviation over the splits; 0 for one split."""


def inception_score(
    probabilities: Float[ndarray, "n k"], splits: int = 10, seed: int | None = 42
) -> InceptionScore:
    """exp of the mean KL divergence of each row from its split's mean row.

    Compare only scores of equal N and equal splits: both change the value, see
    `max_inception_score`.

    Args:
        probabilities: one row per clip, each summing to 1; exact zeros are fine.
        splits: parts scored on their own, as near to equal in size as N allows.
        seed: rows are shuffled by NumPy's legacy generator of this seed, as the StyleGAN-V protocol
            does (42); None keeps their order.

    Returns:
        Mean and standard deviation over the splits.

    Raises:
        ValueError: rows that are not distributions (logits, say), or more splits than rows.

    Source:
        Salimans et al. 2016; Saito et al. 2020 (TGANv2: 1 split); Skorokhodov et al. 2022
        (StyleGAN-V: 10 splits).
    """
    p = np.asarray(probabilities, dtype=np.float64)
    _check(p, splits)
    if seed is not None:
        p = p.copy()
        np.random.RandomState(seed).shuffle(p)  # as the published protocol
    bounds = [i * len(p) // splits for i in range(splits + 1)]
    parts = [p[start:stop] for start, stop in pairwise(bounds)]
    scores = [_score(part) for part in parts]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def max_inception_score(count: int, *, splits: int, classes: int = 101) -> float:
    """Expected score of a perfect classifier on `count` clips whose classes are drawn uniformly.

    With few clips per split some classes are rare by chance, so that not even perfect clips reach
    the number of classes: about 77 of 101 for 2048 clips in 10 splits, 99 in one.

    Args:
        count: clips in all.
        splits: parts scored on their own.
        classes: classes drawn from.

    Returns:
        The mean of 20 simulations from one seed, between 1 and `classes`.

    Raises:
        ValueError: more splits than clips.
    """
    if not 1 <= splits <= count:
        raise ValueError(f"splits={splits} must be between 1 and the {count} clips")
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(TRIALS):
        for labels in np.array_split(rng.integers(classes, size=count), splits):
            shares = np.bincount(labels, minlength=classes) / len(labels)
            scores.append(np.exp(entr(shares).sum()))  # the KL of one-hot rows is the entropy
    return float(np.mean(scores))


def _score(p: ndarray) -> float:
    marginal = p.mean(axis=0)
    divergence = (xlogy(p, p) - xlogy(p, marginal)).sum(axis=1)
    return float(np.exp(divergence.mean()))


def _check(p: ndarray, splits: int) -> None:
    if p.ndim != 2:
        raise ValueError(f"probabilities have shape {p.shape}, but one row per clip is needed")
    if not 1 <= splits <= len(p):
        raise ValueError(f"splits={splits} must be between 1 and the {len(p)} clips")
    if not np.isfinite(p).all():
        raise ValueError("probabilities are not finite. Check the clips and the classifier.")
    if p.min() < 0 or np.abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError(
            f"rows must be distributions, but sum to {p.sum(axis=1).min():.4g} and more, with "
            f"minimum {p.min():.4g}. Pass probabilities (softmax of the logits)."
        )
