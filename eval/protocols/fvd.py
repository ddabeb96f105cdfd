"""Fréchet Video Distance between two sets of clips, with the protocol written beside the number."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from eval.clips.source import ClipSource
from eval.features.extractors import Distance, Extractor
from eval.features.feature_cache import Extraction, FeatureSet, copies_note, extract_features
from eval.features.statistics import Statistics
from eval.metrics.frechet import (
    bootstrap_error,
    frechet_distance,
    frechet_from_features,
    frechet_infinity,
    moments,
)
from eval.metrics.kvd import jedi_distance, kernel_distance
from eval.metrics.neighbors import coverage
from eval.protocols.measurement import check_rates
from eval.published.scores import compare, comparison_lines

USUAL_CLIPS = 2048
NEIGHBORS = 5  # of precision, recall, density and coverage
DISTANCES = {"frechet": frechet_from_features, "jedi": jedi_distance}


def evaluate_fvd(
    real: ClipSource | Statistics,
    fake: ClipSource,
    extractor: Extractor,
    extraction: Extraction,
    *,
    features: FeatureSet | None,
    protocol: str | None = None,
    data_set: str | None = None,
    split: str = "unstated",
    resamples: int = 20,
    allow_rate_mismatch: bool = False,
) -> dict[str, Any]:
    """Distance between the features of two sources, pooled whole.

    With the published I3D weights the score is called `fvd<clips>_<frames>f`, with anything else
    `fvd<clips>_<frames>f_<network>`. Two scores compare if their `protocol` is equal.

    Args:
        real, fake: the clips; `real` may be statistics of clips.
        extractor: gives the features.
        extraction: how those of the generated clips are computed.
        features: those of the real clips, by `real_features`.
        protocol: name of the published protocol that the clips were chosen by; only recorded.
        data_set: what `real` is, as papers call it.
        split: which videos `real` holds, such as `train`; only recorded.
        resamples: bootstrap resamples for `std`; 0 leaves it out.
        allow_rate_mismatch: accept clips whose frames lie differently far apart in time.

    Returns:
        `name`, what `distances` gives, `protocol` (what has to be equal for two scores to compare),
        both sides, `notes`, and `published`: scores of the same data set, and whether they compare.
        Ready for JSON.

    Raises:
        ValueError: fewer than 2 clips, clips of unequal length or frame rate, or broken clips;
            only mean and covariance where the network's distance needs features.
    """
    check_clips(real, fake, allow_rate_mismatch)
    notes = _notes(real, fake)
    found = extract_features(fake, extractor, extraction).values
    notes += copies_note(features.values, "real") if features else []
    notes += copies_note(found, "generated")
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if fake.generated and fake.lossy:  # its source has warned already
        notes.append(f"generated clips were read from lossy files ({', '.join(fake.lossy)}).")
    if features is not None:
        measured = distances(
            features.values, found, resamples=resamples, distance=extractor.distance
        )
    elif extractor.distance != "frechet":
        raise ValueError(
            f"{real.folder}: only mean and covariance, but {extractor.name} needs features"
        )
    else:
        assert isinstance(real, Statistics)
        value = frechet_distance(real.mean, real.covariance, *moments(found))
        measured = {"value": value, "std": None, "infinity": None, "kvd": None, "coverage": None}
    result = {
        "kind": "fvd",
        "name": score_name(extractor, min(len(real), len(fake)), real.protocol.frames),
        **measured,
        "named_protocol": protocol,
        "protocol": {
            "frames": real.protocol.frames,
            **{
                f"{name}_{side}": getattr(source.protocol, name)
                for name in ("stride", "start", "skip")
                for side, source in (("real", real), ("fake", fake))
            },
            "clips_real": len(real),
            "clips_fake": len(fake),
            "seed": real.protocol.seed,
            "height": real.protocol.height,
            "width": real.protocol.width,
            "network": extractor.describe(),
            "real_content": real.content(),
            "dimensions": found.shape[1],
            "covariance": "divided by N",
            "data_set": data_set,
            "split": split,
        },
        "extractor": extractor.describe(),
        "real": real.describe(),
        "fake": fake.describe(),
        "notes": notes,
    }
    return {**result, "published": compare(result)}


def real_features(
    real: ClipSource | Statistics, extractor: Extractor, extraction: Extraction
) -> FeatureSet | None:
    """Features of the real clips; None of statistics without features.

    Raises:
        ValueError: statistics of another network.
    """
    if isinstance(real, Statistics):
        real.check(extractor)
        return real.features
    return extract_features(real, extractor, extraction)


def over_seeds(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result of several sets of generated clips, such as those of several sampling seeds.

    Returns:
        The first result with the mean as its `value`, the standard deviation over the sets as
        its `std`, `std_over` (`sets`; `bootstrap` of a single one) and each set's own under `runs`.

    Raises:
        ValueError: sets of another number of clips or another protocol.
    """
    first, *others = results
    if not others:
        return {**first, "std_over": "bootstrap"}
    for other in others:
        if other["name"] != first["name"] or other["protocol"] != first["protocol"]:
            raise ValueError(
                f"{other['fake']['folder']}: {other['name']} of {other['fake']['clips']} clips, "
                f"but {first['fake']['folder']}: {first['name']} of {first['fake']['clips']}. "
                "Give sets of as many clips, measured by one protocol."
            )
    values, kvds = ([r[name] for r in results] for name in ("value", "kvd"))
    return {
        **first,
        "value": float(np.mean(values)),
        "kvd": None if None in kvds else float(np.mean(kvds)),
        "std": float(np.std(values, ddof=1)),
        "std_over": "sets",
        "infinity": None,
        "coverage": None,
        "runs": [
            {
                "folder": r["fake"]["folder"],
                "content": r["fake"]["content"],
                **{name: r[name] for name in ("value", "std", "kvd")},
            }
            for r in results
        ],
        "notes": list(dict.fromkeys(note for r in results for note in r["notes"])),
    }


def fvd_line(result: Mapping[str, Any]) -> str:
    """A line with the value, its error and what it was measured on; then one per further finding
    and published score of the same data set."""
    protocol, infinity, runs = result["protocol"], result["infinity"], result.get("runs")
    spread = f" ± {result['std']:.4g}" if result["std"] is not None else ""
    more = [
        *([f"mean and standard deviation of {len(runs)} sets"] if runs else []),
        *([f"at infinity {infinity['value']:.6g}"] if infinity else []),
        *([f"KVD {result['kvd']:.4g}"] if result["kvd"] is not None else []),
    ]
    start = protocol["start_fake"]
    place = f"from frame {protocol['skip_fake']}" if start == "first" else f"start {start}"
    lines = [
        f"{result['name']} = {result['value']:.6g}{spread} ({', '.join(more)}; "
        f"{protocol['clips_real']} real clips at stride {protocol['stride_real']}, split "
        f"{protocol['split']}; {protocol['clips_fake']} generated at stride "
        f"{protocol['stride_fake']}, {place}; {protocol['network']['name']})"
    ]
    if found := result.get("coverage"):
        lines.append(
            f"precision {found['precision']:.3f}, recall {found['recall']:.3f}, density "
            f"{found['density']:.3f}, coverage {found['coverage']:.3f} (k = {found['k']})"
        )
    if floor := result.get("floor"):
        lines.append(
            f"floor: {floor['value']:.6g} between {floor['clips']} real clips and as many others"
        )
    if found := result.get("memorization"):
        nearest = found["worst"][0]
        lines.append(
            f"memorization: {found['share']:.1%} of the generated clips are nearer to a real clip "
            f"than {found['level']:.1%} of {found['clips_held_out']} held-out clips are "
            f"(nearest: {nearest['generated']} to {nearest['training']}, {nearest['distance']:.4g})"
        )
    return "\n".join([*lines, *comparison_lines(result)])


def score_name(extractor: Extractor, clips: int, frames: int) -> str:
    """Such as `fvd2048_16f`, or `fvd64_16f_demo` for a network of one's own called demo."""
    head, _, tail = extractor.score.partition("_")
    return f"{head}{clips}_{frames}f" + (f"_{tail}" if tail else "")


def distances(
    real: Float[ndarray, "n d"],
    fake: Float[ndarray, "m d"],
    *,
    resamples: int = 20,
    distance: Distance = "frechet",
) -> dict[str, Any]:
    """Every distance between two feature sets, ready for JSON.

    Returns:
        `value` (`distance`) and `std` (its bootstrap standard deviation; None without resamples),
        `infinity` (of Fréchet: `value`, `error`, `sizes`; None with too few clips), `kvd`, and
        `coverage` (`precision`, `recall`, `density`, `coverage`, `k`; None with too few clips).
    """
    measure = DISTANCES[distance]
    infinity = frechet_infinity(real, fake) if distance == "frechet" else None
    lying = None
    if min(len(real), len(fake)) > NEIGHBORS:
        lying = {**coverage(real, fake, k=NEIGHBORS)._asdict(), "k": NEIGHBORS}
    std = bootstrap_error(real, fake, distance=measure, resamples=resamples) if resamples else None
    return {
        "value": measure(real, fake),
        "std": std,
        "infinity": infinity._asdict() if infinity else None,
        "kvd": kernel_distance(real, fake),
        "coverage": lying,
    }


def check_clips(real: ClipSource | Statistics, fake: ClipSource, allow_rate_mismatch: bool) -> None:
    """Refuse (`ValueError`) too few clips, unequal lengths and, unless allowed, frame rates."""
    for source in (real, fake):
        if len(source) < 2:
            raise ValueError(
                f"{source.folder}: {len(source)} clip, but a distance needs at least 2 (2048 are "
                "usual). Add videos."
            )
    if real.protocol.frames != fake.protocol.frames:
        raise ValueError(
            f"{real.protocol.frames} real frames against {fake.protocol.frames}: use equal clips"
        )
    if not allow_rate_mismatch:
        check_rates(real, fake)


def _notes(real: ClipSource | Statistics, fake: ClipSource) -> list[str]:
    notes = [*real.notes("real"), *fake.notes("generated")]
    fewest = min(len(real), len(fake))
    if fewest < USUAL_CLIPS:
        notes.append(
            f"{fewest} clips: the distance is biased upwards and only compares with scores of as "
            f"many clips; {USUAL_CLIPS} are usual."
        )
    if len(real) != len(fake):
        notes.append(f"{len(real)} real and {len(fake)} generated clips: use equal numbers.")
    return notes
