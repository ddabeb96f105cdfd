"""Fréchet distance: reference values, closed forms, scipy's matrix root, bad input."""

import json

import mpmath
import numpy as np
import pytest
import scipy.linalg

from eval.metrics.frechet import bootstrap_error, frechet_distance, frechet_from_features, moments
from tests.builders.vectors import FIXTURES

CASES = json.loads((FIXTURES / "metrics.json").read_text())["frechet"]


def reference_features(case: dict) -> tuple[np.ndarray, np.ndarray]:
    a = np.random.RandomState(case["seed_a"]).standard_normal((case["n"], case["d"]))
    b = np.random.RandomState(case["seed_b"]).standard_normal((case["n"], case["d"]))
    return a, 1.3 * b + 0.2


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"d{case['d']}")
def test_reference_values(case):
    distance = frechet_from_features(*reference_features(case))
    assert distance == pytest.approx(case["frechet"], rel=1e-6)


def test_moments_divide_by_n():
    mean, cov = moments(np.array([[0.0, 1.0], [2.0, 5.0]], dtype=np.float32))
    np.testing.assert_allclose(mean, [1, 3])
    np.testing.assert_allclose(cov, [[1, 2], [2, 4]])
    assert cov.dtype == np.float64


def test_diagonal_gaussians_have_a_closed_form():
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 30))
    std_a, std_b = rng.uniform(0.1, 3, size=(2, 30))
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((std_a - std_b) ** 2)
    distance = frechet_distance(mean_a, np.diag(std_a**2), mean_b, np.diag(std_b**2))
    assert distance == pytest.approx(expected, rel=1e-12)


def test_agrees_with_the_matrix_root_of_scipy():
    rng = np.random.default_rng(1)
    (mean_a, cov_a), (mean_b, cov_b) = (
        moments(rng.normal(size=(200, 40)) @ rng.normal(size=(40, 40))) for _ in range(2)
    )
    root = np.real(scipy.linalg.sqrtm(cov_a @ cov_b))
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [2, 10, 500])
def test_equal_sets_are_at_zero_even_with_singular_covariances(n):
    features = np.random.default_rng(2).normal(size=(n, 64)).astype(np.float32)
    assert 0 <= frechet_from_features(features, features) < 1e-5


def exact_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The defining formula with 50 digits: the root of the product of the covariances."""
    with mpmath.workdps(50):
        moments = []
        for values in (a, b):
            x = mpmath.matrix(values.tolist())
            n, d = x.rows, x.cols
            mean = mpmath.matrix([mpmath.fsum(x[:, j]) / n for j in range(d)])
            centered = mpmath.matrix(n, d)
            for i in range(n):
                centered[i, :] = x[i, :] - mean.T
            moments.append((mean, centered.T * centered / n))
        (mean_a, cov_a), (mean_b, cov_b) = moments
        values, vectors = mpmath.eigsy(cov_a)
        root = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        product = mpmath.eigsy(root * cov_b * root, eigvals_only=True)
        traces = mpmath.fsum(cov_a[i, i] + cov_b[i, i] for i in range(cov_a.rows))
        squared = mpmath.norm(mean_a - mean_b) ** 2
        return float(squared + traces - 2 * mpmath.fsum(mpmath.sqrt(max(v, 0)) for v in product))


@pytest.mark.parametrize(("n", "m"), [(6, 7), (6, 40), (40, 30)])
def test_exact_with_fewer_clips_than_dimensions(n, m):
    rng = np.random.default_rng(4)
    scale = np.geomspace(100, 1e-4, 16)  # as features have: a few strong directions
    a = rng.normal(size=(n, 16)) * scale
    b = np.concatenate([a] * (1 + m // n))[:m] + 1e-2 * rng.normal(size=(m, 16))
    expected = exact_distance(a, b)
    assert frechet_from_features(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert frechet_distance(*moments(a), *moments(b)) == pytest.approx(expected, abs=1e-4)


def test_symmetric():
    a, b = reference_features(CASES[0])
    assert frechet_from_features(a, b) == pytest.approx(frechet_from_features(b, a), rel=1e-10)


def test_broken_features_are_refused():
    features = np.zeros((5, 3))
    features[2, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 5 feature vectors are not finite"):
        moments(features)
    with pytest.raises(ValueError, match="at least 2"):
        moments(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="one row per clip"):
        moments(np.zeros(3))


def test_broken_moments_are_refused():
    mean, cov = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match=r"second set: .*not finite"):
        frechet_distance(mean, cov, mean, np.full((2, 2), np.inf))
    with pytest.raises(ValueError, match="of 2 and of 3 dimensions"):
        frechet_distance(mean, cov, np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match=r"must be \(d,\) and \(d, d\)"):
        frechet_distance(mean, np.eye(3), mean, cov)


def test_bootstrap_spread_is_near_the_spread_of_fresh_sets():
    rng = np.random.default_rng(3)
    fresh = [
        frechet_from_features(rng.normal(size=(300, 8)), rng.normal(0.3, 1, size=(300, 8)))
        for _ in range(60)
    ]
    a, b = rng.normal(size=(300, 8)), rng.normal(0.3, 1, size=(300, 8))
    spread = bootstrap_error(a, b, resamples=60)
    assert 0.5 < spread / np.std(fresh) < 2
    assert spread == bootstrap_error(a, b, resamples=60)
    with pytest.raises(ValueError, match="resamples=1"):
        bootstrap_error(a, b, resamples=1)
