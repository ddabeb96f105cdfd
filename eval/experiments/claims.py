"""Claims about the rows of an experiment, judged seed by seed by a paired test."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from scipy.stats import ttest_rel

from common.config import Config

LEVEL = 0.05
"""Of significance, of the two-sided test."""

Verdict = Literal["shown", "not shown", "contradicted"]
Scores = Mapping[str, Mapping[Any, Mapping[str, float]]]
"""Row to seed to score to value."""


@dataclass(frozen=True, kw_only=True)
class Claim(Config):
    """That a score of one row is higher or lower than another row's, over the seeds."""

    claim: str
    """In words, such as "GCConv evens out the positions of a group (Table 5)"."""
    row: str
    """The row that it is about."""
    than: str
    """The row that it is compared with."""
    score: str
    """What is compared, such as psnr; of a test set, fast/psnr."""
    expected: Literal["higher", "lower"]
    """Of `row`."""
    beyond: str | None = None
    """A score of the same two rows, such as slow/psnr: the difference must be larger than this
    one's, so that the claim is about an effect that grows."""


@dataclass(frozen=True)
class Judgment:
    """What the seeds say about a claim."""

    claim: Claim
    differences: tuple[float, ...]
    """`row` less `than`, of each seed; with `beyond`, less that score's difference."""
    p: float | None
    """Of a two-sided paired t-test; None with fewer than two seeds."""
    verdict: Verdict

    @property
    def sentence(self) -> str:
        """The claim, the verdict and its numbers."""
        claim, count = self.claim, len(self.differences)
        spread = f" ± {stdev(self.differences):.4f}" if count > 1 else ""
        grows = "" if claim.beyond is None else f" beyond that of {claim.beyond}"
        test = "one seed, no test" if self.p is None else f"{count} seeds, p = {self.p:.3f}"
        return (
            f"{claim.claim}: {self.verdict}. {claim.score} of {claim.row} less {claim.than}{grows}:"
            f" {mean(self.differences):+.4f}{spread} ({test}; {claim.expected} was expected)."
        )


def judge(claim: Claim, scores: Scores) -> Judgment:
    """Compare the two rows over the seeds that both have.

    Shown or contradicted is what a two-sided paired t-test calls significant at 5 %, by the sign of
    the mean difference; everything else is not shown. Claims are judged one by one: of twenty that
    are not true, one is shown or contradicted by chance.

    Raises:
        ValueError: a row or a score that is not there, or no seed in common.
    """
    for row in (claim.row, claim.than):
        if row not in scores:
            raise ValueError(f"claim {claim.claim!r}: no row {row}; there are {', '.join(scores)}")
    seeds = [seed for seed in scores[claim.row] if seed in scores[claim.than]]
    if not seeds:
        raise ValueError(f"claim {claim.claim!r}: {claim.row} and {claim.than} share no seed")

    def values(row: str) -> list[float]:
        found = []
        for seed in seeds:
            here = scores[row][seed]
            for name in (claim.score, claim.beyond or claim.score):
                if name not in here:
                    known = ", ".join(here)
                    raise ValueError(f"claim {claim.claim!r}: no score {name}; there are {known}")
            found.append(here[claim.score] - (here[claim.beyond] if claim.beyond else 0.0))
        return found

    differences = tuple(a - b for a, b in zip(values(claim.row), values(claim.than), strict=True))
    p = _paired_p(differences) if len(seeds) > 1 else None
    verdict: Verdict = "not shown"
    if p is not None and p < LEVEL:
        as_claimed = (mean(differences) > 0) == (claim.expected == "higher")
        verdict = "shown" if as_claimed else "contradicted"
    return Judgment(claim, differences, p, verdict)


def _paired_p(differences: tuple[float, ...]) -> float:
    """Of a paired t-test, which sees the differences alone."""
    if len(set(differences)) == 1:  # no spread, for which the test has no value
        return 1.0 if differences[0] == 0 else 0.0
    return float(ttest_rel(differences, [0.0] * len(differences)).pvalue)
