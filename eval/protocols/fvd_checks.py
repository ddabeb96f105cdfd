"""What a score needs beside it: the floor that real clips give, and whether clips are copies."""

from dataclasses import replace
from typing import Any

from eval.clips.source import ClipSource
from eval.features.extractors import Extractor
from eval.features.feature_cache import Extraction, FeatureSet, extract_features
from eval.features.statistics import Statistics
from eval.metrics.neighbors import memorization
from eval.protocols.fvd import DISTANCES

WORST = 8  # pairs that are named


def real_floor(
    real: ClipSource | Statistics,
    features: FeatureSet | None,
    extractor: Extractor,
    extraction: Extraction | None = None,
) -> dict[str, Any]:
    """The distance of real clips from other real clips: what a perfect generator would get.

    Of a folder, from as many videos again as are in the reference, where it has them; otherwise,
    and of statistics, half against half of the clips, whose bias is that of half as many.

    Returns:
        `value`, `clips` (per half), ready for JSON.

    Raises:
        ValueError: too few clips for two halves, or moments alone.
    """
    if isinstance(real, ClipSource):
        wanted = replace(real.protocol, num_clips=2 * len(real))
        more = ClipSource(real.folder, wanted, on_error=real.on_error, progress=False)
        features = extract_features(more, extractor, extraction)
    if features is None:
        raise ValueError(f"{real.folder}: holds moments alone, so its clips cannot be halved")
    clips = min(len(real), len(features.ids) // 2)
    if clips < 2:
        raise ValueError(
            f"{real.folder}: {len(features.ids)} clips have no two halves of 2 or more"
        )
    halves = features.values[:clips], features.values[clips : 2 * clips]
    return {"value": DISTANCES[extractor.distance](*halves), "clips": clips}


def memorized_clips(
    fake: ClipSource,
    training: FeatureSet | None,
    held_out: ClipSource,
    extractor: Extractor,
    extraction: Extraction | None = None,
) -> dict[str, Any]:
    """Share of generated clips nearer to a training clip than 5 % of held-out clips are.

    Args:
        fake: generated clips.
        training: features of the clips that were trained on.
        held_out: real clips of other videos, cut as the training clips are.

    Returns:
        `share`, `level`, `threshold`, `clips_held_out`, and `worst`: the nearest pairs with
        `generated`, `training` (ids) and `distance`. Ready for JSON.

    Raises:
        ValueError: fewer than 20 held-out clips, or no features of the training clips.
    """
    if training is None:
        raise ValueError("moments alone of the real clips: memorization needs their features")
    generated = extract_features(fake, extractor, extraction)
    usual = extract_features(held_out, extractor, extraction)
    found = memorization(generated.values, training.values, usual.values)
    worst = [
        {
            "generated": generated.ids[i],
            "training": training.ids[found.nearest.indices[i]],
            "distance": float(found.nearest.distances[i]),
        }
        for i in found.worst[:WORST]
    ]
    return {
        "share": found.share,
        "level": found.level,
        "threshold": found.threshold,
        "clips_held_out": len(usual.ids),
        "worst": worst,
    }
