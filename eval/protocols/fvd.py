"""Fréchet Video Distance between two sets of clips, with the protocol written beside the number."""

import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from numpy import ndarray

from eval.clips.source import ClipSource
from eval.features.extractors import Extractor
from eval.features.feature_cache import copies_note, extract_features
from eval.metrics.frechet import frechet_error, frechet_from_features, frechet_infinity
from eval.metrics.kvd import kernel_distance

USUAL_CLIPS = 2048
RATE_TOLERANCE = 0.1  # relative; players round frame rates


def evaluate_fvd(
    real: ClipSource,
    fake: ClipSource,
    extractor: Extractor,
    *,
    split: str = "unstated",
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    workers: int = 0,
    cache: str | Path | None = None,
    resamples: int = 20,
    allow_rate_mismatch: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Distance between the features of two sources, pooled whole.

    With the published I3D weights the score is called `fvd<clips>_<frames>f`, with anything else
    `fvd<clips>_<frames>f_<network>`. Two scores compare if their `protocol` is equal.

    Args:
        real, fake: the clips.
        extractor: gives the features.
        split: which videos `real` holds, such as `train`; only recorded.
        batch_size, device, workers, cache, progress: see `extract_features`.
        resamples: bootstrap resamples for `std`; 0 leaves it out.
        allow_rate_mismatch: accept clips whose frames lie differently far apart in time.

    Returns:
        `name`, what `distances` gives, `protocol`, both sides, and `notes`, ready for JSON.

    Raises:
        ValueError: fewer than 2 clips, clips of unequal length or frame rate, or broken clips.
    """
    _check(real, fake, allow_rate_mismatch)
    notes = _notes(real, fake)
    sets = [
        extract_features(
            source,
            extractor,
            batch_size=batch_size,
            device=device,
            workers=workers,
            cache=cache,
            progress=progress,
        ).values
        for source in (real, fake)
    ]
    notes += copies_note(sets[0], "real") + copies_note(sets[1], "generated")
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if fake.lossy:  # its source has warned already
        notes.append(f"generated clips were read from lossy files ({', '.join(fake.lossy)}).")
    return {
        "kind": "fvd",
        "name": score_name(extractor, min(len(real), len(fake)), real.protocol.frames),
        **distances(*sets, resamples=resamples),
        "protocol": _protocol(real, fake, extractor, split)
        | {"dimensions": sets[0].shape[1], "covariance": "divided by N"},
        "extractor": extractor.describe(),
        "real": real.describe(),
        "fake": fake.describe(),
        "notes": notes,
    }


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


def _protocol(
    real: ClipSource, fake: ClipSource, extractor: Extractor, split: str
) -> dict[str, Any]:
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
        "split": split,
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
    if allow_rate_mismatch:
        return
    if real.rate is None or fake.rate is None:
        folder = real.folder if real.rate is None else fake.folder
        raise ValueError(
            f"{folder}: folders of frames have no frame rate, so the motion cannot be checked. "
            "Make sure that the strides fit (real clips at the training interval), then allow a "
            "rate mismatch."
        )
    if abs(real.rate / fake.rate - 1) > RATE_TOLERANCE:
        raise ValueError(
            f"real clips run at {real.rate:.4g} frames/s (stride {real.protocol.stride}), "
            f"generated ones at {fake.rate:.4g} (stride {fake.protocol.stride}): their motion "
            "cannot match. Set the strides (real clips at the training interval), or allow the "
            "mismatch if the files' frame rates mean nothing."
        )


def _notes(real: ClipSource, fake: ClipSource) -> list[str]:
    notes = []
    fewest = min(len(real), len(fake))
    if fewest < USUAL_CLIPS:
        notes.append(
            f"{fewest} clips: the distance is biased upwards and only compares with scores of as "
            f"many clips; {USUAL_CLIPS} are usual."
        )
    if len(real) != len(fake):
        notes.append(f"{len(real)} real and {len(fake)} generated clips: use equal numbers.")
    return notes
