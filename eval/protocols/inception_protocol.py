"""Inception Score of generated clips by a protocol, its ceiling, and the score of real clips."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from jaxtyping import Float
from scipy.special import chdtrc

from common.config import Config
from eval.clips.labels import read_labels
from eval.clips.source import ClipSource
from eval.features.extractors import Extractor
from eval.features.feature_cache import Extraction, copies_note, extract_features
from eval.metrics.inception_score import inception_score, max_inception_score
from eval.protocols.measurement import check_rates
from eval.published.scores import compare, comparison_lines

SHUFFLE_SEED = 42  # StyleGAN-V's
CLIP_FIELDS = ("frames", "stride", "start", "skip", "seed", "height", "width")
UNLIKELY = 1e-3  # probability below which labels are not taken for uniform draws


@dataclass(frozen=True, kw_only=True)
class ISProtocol(Config):
    """How clips become one score."""

    num_clips: Annotated[int, Ge(2)]
    """Clips per run."""
    runs: Annotated[int, Ge(1)] = 1
    """Runs, each on clips of its own; the score is their mean, and its spread theirs."""
    splits: Annotated[int, Ge(1)] = 1
    """Parts of a run that are scored on their own; with one run, the spread is theirs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.splits > self.num_clips:
            raise ValueError(f"splits={self.splits} must be at most num_clips={self.num_clips}")
        if self.runs > 1 and self.splits > 1:
            raise ValueError(f"runs={self.runs} and splits={self.splits}: only one may exceed 1")

    @property
    def total(self) -> int:
        """Clips of all runs."""
        return self.num_clips * self.runs

    @property
    def name(self) -> str:
        """Such as `2048x10runs`; preset names are told from their numbers."""
        known = {protocol: name for name, protocol in PROTOCOLS.items()}
        if self in known:
            return known[self].removeprefix("is_")
        return f"{self.num_clips}x{self.runs}runs_{self.splits}splits"


PROTOCOLS: dict[str, ISProtocol] = {
    "is_2048x10runs": ISProtocol(num_clips=2048, runs=10),
    "is_10k_10splits": ISProtocol(num_clips=10_000, splits=10),
    "is_2048_10splits": ISProtocol(num_clips=2048, splits=10),
}
"""TGANv2's; 10,000 clips in 10 splits; StyleGAN-V's and Latte's. Their ceilings differ."""


def evaluate_is(
    fake: ClipSource,
    extractor: Extractor,
    protocol: ISProtocol,
    *,
    extraction: Extraction,
    real: ClipSource | None = None,
    data_set: str | None = None,
    allow_rate_mismatch: bool = False,
) -> dict[str, Any]:
    """Score generated clips, and real ones in the same way.

    Args:
        fake: at least `protocol.total` clips; only the first `protocol.total` count.
        extractor: of probabilities.
        protocol: how many clips make a score.
        extraction: how probabilities are computed.
        real: clips to score beside, with as many runs as they suffice for; fewer clips than one run
            are scored all at once, which a note says.
        data_set: what was trained on, as papers call it.
        allow_rate_mismatch: accept real clips whose frames lie differently far apart in time.

    Returns:
        `name`, `value`, `std` (None for one run and one split), `ceiling` (what a perfect
        classifier would give) and `ceiling_labels` (on which labels: `known`, those of the clips,
        or `random`, uniform draws, where they are not recorded), `accuracy` (share of clips that
        the classifier takes for their label; None where that is not known) and `accuracy_by_class`
        (name to share), `real` (likewise; None without), `labels` (see `drawn_labels`), `notes`,
        `protocol`: scores compare if it is equal, and `published`: scores on the same data set, and
        whether they compare. Ready for JSON.

    Raises:
        ValueError: too few generated clips, broken ones, or real ones of another frame rate.
    """
    if extractor.output != "probabilities":
        raise ValueError(f"{extractor.name} gives features, but IS needs class probabilities")
    if len(fake) < protocol.total:
        raise ValueError(
            f"{fake.folder}: {len(fake)} clips, but the protocol needs {protocol.total} "
            f"({protocol.runs} x {protocol.num_clips}). Generate more, or lower clips or runs: the "
            "score then has another name."
        )

    if real is not None and not allow_rate_mismatch:
        check_rates(real, fake)
    rows = extract_features(fake, extractor, extraction).values
    real_score, notes = None, [*fake.notes("generated"), *copies_note(rows, "generated")]
    if real is not None:
        notes += real.notes("real")
        real_rows = extract_features(real, extractor, extraction).values
        runs = min(protocol.runs, len(real) // protocol.num_clips)
        clips = protocol.num_clips if runs else len(real)
        fitting = ISProtocol(num_clips=clips, runs=max(runs, 1), splits=min(protocol.splits, clips))
        real_score = {**_score(real, real_rows, fitting), **asdict(fitting)}
        real_score["source"] = real.describe()
        if clips < protocol.num_clips:
            notes.append(
                f"only {clips} real clips for {protocol.num_clips} per run: their score has "
                "another ceiling and does not compare."
            )
    labels, doubts = drawn_labels(fake)
    result = {
        "kind": "is",
        "name": f"{extractor.score}_{protocol.name}",
        **_score(fake, rows, protocol),
        "classes": rows.shape[1],
        "protocol": {
            **asdict(protocol),
            **{name: getattr(fake.protocol, name) for name in CLIP_FIELDS},
            "network": extractor.describe(),
            "data_set": data_set,
        },
        "extractor": extractor.describe(),
        "fake": fake.describe(),
        "real": real_score,
        "labels": labels,
        "notes": notes + doubts,
    }
    return {**result, "published": compare(result)}


def drawn_labels(fake: ClipSource) -> tuple[dict[str, Any] | None, list[str]]:
    """How often each class was asked for, by the samples.json of `scripts/sample.py`, and doubts.

    Returns:
        `classes`, `fewest`, `most` and `p` (of a chi-squared test that they were drawn uniformly),
        None without a record; and a note where the score's ceiling does not hold.
    """
    known = read_labels(fake.folder)
    if known is None:
        return None, [
            "labels: no samples.json beside the clips, so whether they were drawn uniformly is not "
            "known; the ceiling holds only then."
        ]
    classes, labels = len(known.class_names), known.all_of(fake.ids)
    if labels is None:
        return None, ["labels: none recorded; the ceiling is that of uniform labels."]
    counts = np.bincount(np.array(labels, dtype=int), minlength=classes)
    expected = counts.sum() / classes
    p = float(chdtrc(classes - 1, np.sum((counts - expected) ** 2 / expected)))  # chi-squared test
    counted = {"classes": classes, "fewest": int(counts.min()), "most": int(counts.max()), "p": p}
    if p >= UNLIKELY:
        return counted, []
    return counted, [
        f"labels: not drawn uniformly ({counted['fewest']} to {counted['most']} clips of each of "
        f"{classes} classes), so the score does not compare."
    ]


def is_line(result: Mapping[str, Any]) -> str:
    """N, splits, what a perfect classifier would give, the real clips' score, then the notes."""

    def score(scored: Mapping[str, Any]) -> str:
        spread = "" if scored["std"] is None else f" ± {scored['std']:.3g}"
        return f"{scored['value']:.5g}{spread}"

    def perfect(scored: Mapping[str, Any]) -> str:
        which = "their" if scored["ceiling_labels"] == "known" else "random"
        return f"a perfect classifier gives {scored['ceiling']:.4g} on {which} labels"

    protocol, real = result["protocol"], result["real"]
    line = (
        f"{result['name']} = {score(result)} (N = {protocol['num_clips']}, "
        f"{protocol['runs']} runs, {protocol['splits']} splits; {perfect(result)})"
    )
    if real:
        counts = f"N = {real['num_clips']}, {real['runs']} runs"
        line += f"; real clips {score(real)} ({counts}; {perfect(real)})"
    return "\n".join([line, *result["notes"], *comparison_lines(result)])


def _score(
    source: ClipSource, rows: Float[np.ndarray, "n k"], protocol: ISProtocol
) -> dict[str, Any]:
    known, classes = read_labels(source.folder), rows.shape[1]
    labels = accuracy = by_class = None
    if known is not None and len(known.class_names) == classes:
        labels = known.all_of(source.ids)
    means, std = _run_scores(rows, protocol)
    if known is None or labels is None:
        perfect = max_inception_score(protocol.num_clips, splits=protocol.splits, classes=classes)
    else:  # one-hot rows, scored in the same way
        perfect = float(np.mean(_run_scores(np.eye(classes)[labels], protocol)[0]))
        hits = rows.argmax(axis=1) == labels
        accuracy = float(hits.mean())
        by_class = {
            known.class_names[label]: float(hits[np.array(labels) == label].mean())
            for label in sorted(set(labels))
        }
    return {
        "value": float(np.mean(means)),
        "std": std if max(protocol.runs, protocol.splits) > 1 else None,
        "ceiling": perfect,
        "ceiling_labels": "random" if labels is None else "known",
        "accuracy": accuracy,
        "accuracy_by_class": by_class,
    }


def _run_scores(rows: Float[np.ndarray, "n k"], protocol: ISProtocol) -> tuple[list[float], float]:
    """The score of each run, and the spread over runs or else over splits."""
    seed = SHUFFLE_SEED if protocol.splits > 1 else None
    scores = [
        inception_score(rows[start : start + protocol.num_clips], protocol.splits, seed)
        for start in range(0, protocol.total, protocol.num_clips)
    ]
    means = [score.mean for score in scores]
    return means, float(np.std(means)) if protocol.runs > 1 else scores[0].std
