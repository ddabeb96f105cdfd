"""Claims: the verdict follows from the seeds' differences, and says what was compared."""

import pytest

from eval.experiments.claims import Claim, judge

CLAIM = Claim(claim="A beats B", row="a", than="b", score="psnr", expected="higher")


def rows(a, b, score="psnr"):
    return {
        name: {seed: {score: value} for seed, value in enumerate(values)}
        for name, values in (("a", a), ("b", b))
    }


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([20.5, 21.6, 19.4], [20.0, 21.0, 19.0], "shown"),
        ([20.0, 21.0, 19.0], [20.5, 21.6, 19.4], "contradicted"),
        ([20.5, 20.9, 19.4], [20.0, 21.0, 19.0], "not shown"),
        ([25.0], [20.0], "not shown"),  # one seed shows nothing
        ([20.0, 21.0], [20.0, 21.0], "not shown"),  # equal
    ],
)
def test_verdicts_by_hand(a, b, verdict):
    judged = judge(CLAIM, rows(a, b))
    assert judged.verdict == verdict
    assert judged.differences == pytest.approx([x - y for x, y in zip(a, b, strict=True)])


def test_p_of_the_paired_test():
    # differences .5, .6, .4: mean .5, std .1, t = .5 / (.1 / sqrt 3) = 8.660 with 2 degrees
    judged = judge(CLAIM, rows([20.5, 21.6, 19.4], [20.0, 21.0, 19.0]))
    assert judged.p == pytest.approx(0.01307, abs=1e-5)
    assert "A beats B: shown. psnr of a less b: +0.5000 ± 0.1000 (3 seeds, p = 0.013" in (
        judged.sentence
    )


def test_lower_is_expected_of_a_margin():
    claim = Claim(claim="even", row="a", than="b", score="margin", expected="lower")
    scores = rows([0.1, 0.11, 0.12], [0.2, 0.22, 0.21], "margin")
    assert judge(claim, scores).verdict == "shown"
    assert judge(CLAIM, rows([1, 2, 3], [2, 3.1, 4])).verdict == "contradicted"


def test_an_effect_that_grows():
    claim = Claim(claim="grows", row="a", than="b", score="fast", expected="higher", beyond="slow")
    scores = {
        "a": {s: {"fast": 20 + s, "slow": 25 + s} for s in range(3)},
        "b": {s: {"fast": 18 + 1.1 * s, "slow": 24.5 + s} for s in range(3)},
    }
    judged = judge(claim, scores)
    assert judged.differences == pytest.approx([1.5, 1.4, 1.3])
    assert judged.verdict == "shown"
    assert "beyond that of slow" in judged.sentence


def test_only_seeds_of_both_count_and_what_is_missing_is_named():
    scores = rows([1.0, 2.0, 3.0], [0.5, 1.4, 2.5])
    del scores["b"][1]
    assert judge(CLAIM, scores).differences == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="no row b; there are a"):
        judge(CLAIM, {"a": scores["a"]})
    with pytest.raises(ValueError, match="no score psnr; there are ssim"):
        judge(CLAIM, rows([1, 2], [1, 2], "ssim"))
    with pytest.raises(ValueError, match="a and b share no seed"):
        judge(CLAIM, {"a": {0: {"psnr": 1}}, "b": {1: {"psnr": 1}}})
