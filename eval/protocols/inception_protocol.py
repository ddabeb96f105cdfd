"""Inception Score of generated clips by a protocol, its ceiling, and the score of real clips."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import chisquare

from common.files import read_json
from eval.clips.source import ClipSource
from eval.features.extractors import Extractor
from eval.features.feature_cache import copies_note, extract_features
from eval.metrics.inception_score import ceiling, inception_score

SHUFFLE_SEED = 42  # StyleGAN-V's
UNLIKELY = 1e-3  # probability below which labels are not taken for uniform draws


@dataclass(frozen=True, kw_only=True)
class ISProtocol:
    """How clips become one score."""

    clips: int
    """Clips per run."""
    runs: int = 1
    """Runs, each on clips of its own; the score is their mean, and its spread theirs."""
    splits: int = 1
    """Parts of a run that are scored on their own; with one run, the spread is theirs."""

    def __post_init__(self) -> None:
        if self.runs < 1 or not 1 <= self.splits <= self.clips or self.clips < 2:
            raise ValueError(
                f"clips={self.clips}, runs={self.runs}, splits={self.splits}: at least 2 clips, 1 "
                "run and 1 split are needed, and no more splits than clips"
            )
        if self.runs > 1 and self.splits > 1:
            raise ValueError(f"runs={self.runs} and splits={self.splits}: only one may exceed 1")

    @property
    def total(self) -> int:
        """Clips of all runs."""
        return self.clips * self.runs

    @property
    def name(self) -> str:
        """Such as `2048x10runs`; preset names are told from their numbers."""
        known = {protocol: name for name, protocol in PROTOCOLS.items()}
        if self in known:
            return known[self].removeprefix("is_")
        return f"{self.clips}x{self.runs}runs_{self.splits}splits"


PROTOCOLS: dict[str, ISProtocol] = {
    "is_2048x10runs": ISProtocol(clips=2048, runs=10),
    "is_10k_10splits": ISProtocol(clips=10_000, splits=10),
    "is_2048_10splits": ISProtocol(clips=2048, splits=10),
}
"""TGANv2's; 10,000 clips in 10 splits; StyleGAN-V's and Latte's. Their ceilings differ."""


def evaluate_is(
    fake: ClipSource,
    extractor: Extractor,
    protocol: ISProtocol,
    *,
    real: ClipSource | None = None,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    workers: int = 0,
    cache: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score generated clips, and real ones in the same way.

    Args:
        fake: at least `protocol.total` clips; the first so many count.
        extractor: of probabilities.
        protocol: how many clips make a score.
        real: clips to score beside, with as many runs as they suffice for; fewer clips than one run
            are scored all at once, which a note says.
        batch_size, device, workers, cache, progress: see `extract_features`.

    Returns:
        `name`, `value`, `std` (None for one run and one split), `ceiling` (what a perfect
        classifier gives on uniform classes), `real` (likewise; None without), `labels` (see
        `drawn_labels`), `notes`, and `protocol`: scores compare if it is equal. Ready for JSON.

    Raises:
        ValueError: too few generated clips, or broken ones.
    """
    if extractor.output != "probabilities":
        raise ValueError(f"{extractor.name} gives features, but IS needs class probabilities")
    if len(fake) < protocol.total:
        raise ValueError(
            f"{fake.folder}: {len(fake)} clips, but the protocol needs {protocol.total} "
            f"({protocol.runs} x {protocol.clips}). Generate more, or lower clips or runs: the "
            "score then has another name."
        )

    def probabilities(source: ClipSource) -> Float[np.ndarray, "n k"]:
        return extract_features(
            source,
            extractor,
            batch_size=batch_size,
            device=device,
            workers=workers,
            cache=cache,
            progress=progress,
        ).values

    rows = probabilities(fake)
    beside, notes = None, copies_note(rows, "generated")
    if real is not None:
        beside = _beside(probabilities(real), protocol)
        if beside["clips"] < protocol.clips:
            notes.append(
                f"only {beside['clips']} real clips for {protocol.clips} per run: their score has "
                "another ceiling and does not compare."
            )
    labels, doubts = drawn_labels(fake)
    return {
        "kind": "is",
        "name": f"{extractor.score}_{protocol.name}",
        **_score(rows, protocol),
        "classes": rows.shape[1],
        "protocol": asdict(protocol) | _clip_fields(fake) | {"network": extractor.describe()},
        "extractor": extractor.describe(),
        "fake": fake.describe(),
        "real": None if beside is None or real is None else beside | {"source": real.describe()},
        "labels": labels,
        "notes": notes + doubts,
    }


def drawn_labels(fake: ClipSource) -> tuple[dict[str, Any] | None, list[str]]:
    """How often each class was asked for, by the samples.json of `scripts/sample.py`, and doubts.

    Returns:
        `classes`, `fewest`, `most` and `p` (of a chi-squared test that they were drawn uniformly),
        None without a record; and a note where the score's ceiling does not hold.
    """
    file = fake.folder / "samples.json"
    if not file.is_file():
        return None, [
            "labels: no samples.json beside the clips, so whether they were drawn uniformly is not "
            "known; the ceiling holds only then."
        ]
    record = read_json(file)
    label_of = {clip["file"]: clip["label"] for clip in record["clips"]}
    labels = [label_of.get(id) for id in fake.ids]
    classes = len(record["class_names"])
    if classes < 2 or None in labels:
        return None, ["labels: none recorded; the ceiling is that of uniform labels."]
    counts = np.bincount(np.array(labels, dtype=int), minlength=classes)
    p = float(chisquare(counts).pvalue)
    counted = {"classes": classes, "fewest": int(counts.min()), "most": int(counts.max()), "p": p}
    if p >= UNLIKELY:
        return counted, []
    return counted, [
        f"labels: not drawn uniformly ({counted['fewest']} to {counted['most']} clips of each of "
        f"{classes} classes), so the score does not compare."
    ]


def _clip_fields(fake: ClipSource) -> dict[str, Any]:
    names = ("frames", "stride", "start", "skip", "seed", "height", "width")
    return {name: getattr(fake.protocol, name) for name in names}


def _beside(rows: Float[np.ndarray, "n k"], protocol: ISProtocol) -> dict[str, Any]:
    runs = min(protocol.runs, len(rows) // protocol.clips)
    clips = protocol.clips if runs else len(rows)
    fitting = ISProtocol(clips=clips, runs=max(runs, 1), splits=min(protocol.splits, clips))
    return {**_score(rows, fitting), **asdict(fitting)}


def _score(rows: Float[np.ndarray, "n k"], protocol: ISProtocol) -> dict[str, Any]:
    starts = range(0, protocol.total, protocol.clips)
    seed = SHUFFLE_SEED if protocol.splits > 1 else None
    scores = [
        inception_score(rows[start : start + protocol.clips], protocol.splits, seed)
        for start in starts
    ]
    means = [score.mean for score in scores]
    spread = float(np.std(means)) if protocol.runs > 1 else scores[0].std
    return {
        "value": float(np.mean(means)),
        "std": spread if max(protocol.runs, protocol.splits) > 1 else None,
        "ceiling": ceiling(protocol.clips, splits=protocol.splits, classes=rows.shape[1]),
    }
