"""Kernel distance against its definition; distances extrapolated to infinitely many clips."""

import numpy as np
import pytest

from eval.metrics import kvd as kernel
from eval.metrics.frechet import frechet_from_features, frechet_infinity
from eval.metrics.kvd import jedi_distance, kernel_distance


def naive(a: np.ndarray, b: np.ndarray) -> float:
    def mean(x: np.ndarray, y: np.ndarray, same: bool) -> float:
        values = [
            (x[i] @ y[j] / x.shape[1] + 1) ** 3
            for i in range(len(x))
            for j in range(len(y))
            if not (same and i == j)
        ]
        return float(np.mean(values))

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def test_kernel_distance_is_the_unbiased_estimate(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 4)), rng.normal(size=(7, 4)) + 0.5
    assert kernel_distance(a, b) == pytest.approx(naive(a, b), rel=1e-12)
    monkeypatch.setattr(kernel, "BLOCK", 2)
    assert kernel_distance(a, b) == pytest.approx(naive(a, b), rel=1e-12)


def test_kernel_distance_has_no_bias():
    rng = np.random.default_rng(0)
    values = [kernel_distance(*rng.normal(size=(2, 20, 3))) for _ in range(400)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0


def test_jedi_distance_is_between_second_moments(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 4)), rng.normal(size=(7, 4)) + 0.5
    # <x, y>^2 = <x x^T, y y^T>: the kernel's mean embedding is the second moment matrix
    gap = a.T @ a / 9 - b.T @ b / 7
    expected = 100 * np.square(gap).sum() / 4**2
    assert jedi_distance(a, b) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(kernel, "BLOCK", 2)
    assert jedi_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert jedi_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_jedi_distance_equals_the_published_example():
    a = np.arange(1.0, 10).reshape(3, 3)
    b = np.array([[7.0, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
    assert jedi_distance(a, b) == pytest.approx(100 * 270.7, rel=2e-4)  # in JEDi's code


@pytest.mark.parametrize("kernel_distance", [kernel_distance, jedi_distance])
def test_kernel_distance_refuses_bad_features(kernel_distance):
    good = np.ones((3, 2))
    with pytest.raises(ValueError, match="at least 2 rows"):
        kernel_distance(good[:1], good)
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance(good, good * np.nan)
    with pytest.raises(ValueError, match="2 and of 3 dimensions"):
        kernel_distance(good, np.ones((3, 3)))


def test_infinity_takes_the_bias_away():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(600, 30)), rng.normal(size=(600, 30))
    plain, limit = frechet_from_features(a, b), frechet_infinity(a, b)
    assert limit is not None
    assert plain > 0.5  # the true distance is 0
    assert abs(limit.value) < plain / 4
    assert (limit.sizes[0], limit.sizes[-1]) == (150, 600)
    assert limit == frechet_infinity(a, b)


def test_infinity_needs_more_clips_than_dimensions():
    features = np.random.default_rng(0).normal(size=(120, 30))
    assert frechet_infinity(features, features) is None
