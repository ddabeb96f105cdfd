"""Inception Score: reference values, closed forms, exact zeros, the ceiling of a protocol."""

import json

import numpy as np
import pytest
from scipy.special import softmax

from eval.metrics.inception_score import inception_score, max_inception_score
from tests.builders.vectors import FIXTURES

CASES = json.loads((FIXTURES / "metrics.json").read_text())["inception_score"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"n{case['n']}")
def test_reference_values(case):
    logits = np.random.RandomState(case["seed"]).standard_normal((case["n"], case["classes"]))
    score = inception_score(softmax(3 * logits, axis=1), splits=10, seed=42)
    assert score.mean == pytest.approx(case["mean"], rel=1e-6)
    assert score.std == pytest.approx(case["std"], rel=1e-6)


def test_one_hot_rows_of_all_classes_score_their_number():
    score = inception_score(np.tile(np.eye(7), (3, 1)), splits=1)
    assert score.mean == pytest.approx(7)
    assert score.std == 0


def test_equal_rows_score_one():
    assert inception_score(np.full((20, 4), 0.25), splits=2).mean == pytest.approx(1)


def test_rows_are_left_alone_and_in_order_without_a_seed():
    p = np.repeat(np.eye(4), 5, axis=0)
    before = p.copy()
    assert inception_score(p, splits=4, seed=None).mean == pytest.approx(1)  # one class per split
    assert inception_score(p, splits=4, seed=42).mean > 2
    np.testing.assert_array_equal(p, before)


def test_ceiling_is_what_a_perfect_classifier_gets():
    labels = np.random.default_rng(5).integers(101, size=2048)
    for splits in (1, 10):
        perfect = inception_score(np.eye(101)[labels], splits=splits).mean
        assert max_inception_score(2048, splits=splits) == pytest.approx(perfect, rel=0.02)
    assert max_inception_score(2048, splits=10) < 80 < max_inception_score(2048, splits=1) < 101


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="softmax"):
        inception_score(np.array([[3.0, -1.0], [0.2, 0.4]]), splits=1)
    with pytest.raises(ValueError, match="not finite"):
        inception_score(np.array([[np.nan, 1.0]]), splits=1)
    with pytest.raises(ValueError, match=r"splits=3 .* between 1 and .* 2 clips"):
        inception_score(np.full((2, 2), 0.5), splits=3)
    with pytest.raises(ValueError, match="one row per clip"):
        inception_score(np.full(4, 0.25))
    with pytest.raises(ValueError, match="splits=0"):
        max_inception_score(10, splits=0)
