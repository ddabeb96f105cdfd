"""Fréchet Video Distance between two sets of clips, with the protocol written beside the number."""

import warnings
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from numpy import ndarray

from eval.clips.source import ClipSource, check_rates
from eval.features.extractors import Extractor
from eval.features.feature_cache import Extraction, copies_note, extract_features
from eval.metrics.frechet import frechet_error, frechet_from_features, frechet_infinity
from eval.metrics.kvd import kernel_distance
from eval.protocols.published_scores import comparison_lines, comparison_records

USUAL_CLIPS = 2048


def evaluate_fvd(
    real: ClipSource,
    fake: ClipSource,
    extractor: Extractor,
    *,
    protocol: str | None = None,
    data_set: str | None = None,
    split: str = "unstated",
    extraction: Extraction | None = None,
    resamples: int = 20,
    allow_rate_mismatch: bool = False,
) -> dict[str, Any]:
    """Distance between the features of two sources, pooled whole.

    With the published I3D weights the score is called `fvd<clips>_<frames>f`, with anything else
    `fvd<clips>_<frames>f_<network>`. Two scores compare if their `protocol` is equal.

    Args:
        real, fake: the clips.
        extractor: gives the features.
        protocol: name of the published protocol that the clips were chosen by; only recorded.
        data_set: what `real` is, as papers call it.
        split: which videos `real` holds, such as `train`; only recorded.
        extraction: how features are computed.
        resamples: bootstrap resamples for `std`; 0 leaves it out.
        allow_rate_mismatch: accept clips whose frames lie differently far apart in time.

    Returns:
        `name`, what `distances` gives, `protocol`, both sides, `notes`, and `published`: scores of
        the same data set, and whether they compare. Ready for JSON.

    Raises:
        ValueError: fewer than 2 clips, clips of unequal length or frame rate, or broken clips.
    """
    _check(real, fake, allow_rate_mismatch)
    notes = _notes(real, fake)
    sets = [extract_features(source, extractor, extraction).values for source in (real, fake)]
    notes += copies_note(sets[0], "real") + copies_note(sets[1], "generated")
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if fake.generated and fake.lossy:  # its source has warned already
        notes.append(f"generated clips were read from lossy files ({', '.join(fake.lossy)}).")
    result = {
        "kind": "fvd",
        "name": score_name(extractor, min(len(real), len(fake)), real.protocol.frames),
        **distances(*sets, resamples=resamples),
        "named_protocol": protocol,
        "protocol": _protocol(real, fake, extractor)
        | {"dimensions": sets[0].shape[1], "covariance": "divided by N"}
        | {"data_set": data_set, "split": split},
        "extractor": extractor.describe(),
        "real": real.describe(),
        "fake": fake.describe(),
        "notes": notes,
    }
    return {**result, "published": comparison_records(result)}


def fvd_line(result: Mapping[str, Any]) -> str:
    """A line with the value, its error and what it was measured on, and one per published score of
    the same data set."""
    protocol, infinity = result["protocol"], result["infinity"]
    spread = f" ± {result['std']:.4g}" if result["std"] is not None else ""
    limit = f"at infinity {infinity['value']:.6g}, " if infinity else ""
    start = protocol["start_fake"]
    place = f"from frame {protocol['skip_fake']}" if start == "first" else f"start {start}"
    line = (
        f"{result['name']} = {result['value']:.6g}{spread} ({limit}KVD {result['kvd']:.4g}; "
        f"{protocol['clips_real']} real clips at stride {protocol['stride_real']}, split "
        f"{protocol['split']}; {protocol['clips_fake']} generated at stride "
        f"{protocol['stride_fake']}, {place}; {protocol['network']['name']})"
    )
    return "\n".join([line, *comparison_lines(result)])


def score_name(extractor: Extractor, clips: int, frames: int) -> str:
    """Such as `fvd2048_16f`, or `fvd64_16f_demo` for a network of one's own called demo."""
    head, _, tail = extractor.score.partition("_")
    return f"{head}{clips}_{frames}f" + (f"_{tail}" if tail else "")


def distances(
    real: Float[ndarray, "n d"], fake: Float[ndarray, "m d"], *, resamples: int = 20
) -> dict[str, Any]:
    """Every distance between two feature sets, ready for JSON.

    Returns:
        `value` (Fréchet) and `std` (its bootstrap standard deviation; None without resamples),
        `infinity` (`value`, `error`, `sizes`; None with too few clips) and `kvd`.
    """
    infinity = frechet_infinity(real, fake)
    return {
        "value": frechet_from_features(real, fake),
        "std": frechet_error(real, fake, resamples=resamples) if resamples else None,
        "infinity": infinity._asdict() if infinity else None,
        "kvd": kernel_distance(real, fake),
    }


def _protocol(real: ClipSource, fake: ClipSource, extractor: Extractor) -> dict[str, Any]:
    """What has to be equal for two scores to compare, each thing by its name."""
    sides: dict[str, Any] = {}
    for name in ("stride", "start", "skip"):
        for side, source in (("real", real), ("fake", fake)):
            sides[f"{name}_{side}"] = getattr(source.protocol, name)
    return {
        "frames": real.protocol.frames,
        **sides,
        "clips_real": len(real),
        "clips_fake": len(fake),
        "seed": real.protocol.seed,
        "height": real.protocol.height,
        "width": real.protocol.width,
        "network": extractor.describe(),
        "real_content": real.content(),
    }


def _check(real: ClipSource, fake: ClipSource, allow_rate_mismatch: bool) -> None:
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


def _notes(real: ClipSource, fake: ClipSource) -> list[str]:
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
