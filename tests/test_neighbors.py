"""Nearest clips, precision and recall, and memorization: definitions, closed forms, bad input."""

import numpy as np
import pytest

from eval.metrics import neighbors
from eval.metrics.neighbors import coverage, memorization, nearest_clips


def test_nearest_clips_are_those_of_all_pairs_and_copies_are_at_zero(monkeypatch):
    rng = np.random.default_rng(0)
    references = 100 + rng.normal(size=(50, 7)).astype(np.float32)
    queries = np.concatenate([references[[8, 3]], 100 + rng.normal(size=(20, 7))])
    expected = np.linalg.norm(queries[:, None].astype(float) - references[None], axis=2)
    monkeypatch.setattr(neighbors, "BLOCK", 6)
    found = nearest_clips(queries, references)
    np.testing.assert_array_equal(found.indices, expected.argmin(axis=1))
    np.testing.assert_allclose(found.distances, expected.min(axis=1), rtol=1e-12)
    assert (list(found.indices[:2]), list(found.distances[:2])) == ([8, 3], [0, 0])


def naive(real: np.ndarray, fake: np.ndarray, k: int) -> list[float]:
    def radius(x: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]

    pairs = np.array([[np.linalg.norm(r - f) for f in fake] for r in real])
    in_real = pairs < np.array([radius(real, i) for i in range(len(real))])[:, None]
    in_fake = pairs < np.array([radius(fake, j) for j in range(len(fake))])[None]
    return [
        in_real.any(axis=0).mean(),
        in_fake.any(axis=1).mean(),
        in_real.sum() / k / len(fake),
        in_real.any(axis=1).mean(),
    ]


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_coverage_is_by_its_definition(monkeypatch, shift):
    rng = np.random.default_rng(shift)
    real, fake = rng.normal(size=(40, 3)), shift + 0.7 * rng.normal(size=(31, 3))
    monkeypatch.setattr(neighbors, "BLOCK", 8)
    assert list(coverage(real, fake, k=4)) == pytest.approx(naive(real, fake, 4), abs=1e-12)


def test_coverage_of_a_model_that_makes_one_mode_of_two():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(200, 4)), 50 + rng.normal(size=(200, 4))])
    one_mode = coverage(real, rng.normal(size=(300, 4)))
    assert one_mode.precision > 0.9
    assert one_mode.recall < 0.55
    assert 0.4 < one_mode.coverage < 0.55
    assert one_mode.density == pytest.approx(1, abs=0.2)
    far = coverage(real, 500 + rng.normal(size=(300, 4)))
    assert far == (0, 0, 0, 0)


def test_memorization_is_at_its_level_for_new_clips_and_near_one_for_copies():
    rng = np.random.default_rng(0)
    training, held_out, new = (rng.normal(size=(n, 6)) for n in (400, 200, 1000))
    honest = memorization(new, training, held_out, level=0.1)
    assert honest.share == pytest.approx(0.1, abs=0.05)
    assert honest.level == pytest.approx(0.1, abs=0.01)
    copies = new.copy()
    copies[:250] = training[:250] + 1e-3
    caught = memorization(copies, training, held_out, level=0.1)
    assert caught.share == pytest.approx(0.25 + 0.75 * honest.share, abs=0.02)
    assert caught.threshold == honest.threshold
    assert set(caught.worst[:250]) == set(range(250))
    np.testing.assert_array_equal(caught.nearest.indices[:250], range(250))


def test_bad_features_are_refused():
    good = np.ones((30, 2))
    with pytest.raises(ValueError, match="2 and of 3 dimensions"):
        nearest_clips(good, np.ones((3, 3)))
    with pytest.raises(ValueError, match="not finite"):
        nearest_clips(good * np.nan, good)
    with pytest.raises(ValueError, match=r"shape .0, 2.: need one row"):
        nearest_clips(good, good[:0])
    with pytest.raises(ValueError, match=r"5 generated clips.* 5 need 6"):
        coverage(good, good[:5])
    with pytest.raises(ValueError, match=r"10 held-out clips .* at least 20"):
        memorization(good, good, good[:10])
