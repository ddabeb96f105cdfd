"""What a score needs beside it: the floor that real clips give."""

from dataclasses import replace
from typing import Any

from eval.clips.source import ClipSource
from eval.features.extractors import Extractor
from eval.features.feature_cache import Extraction, FeatureSet, extract_features
from eval.features.statistics import Statistics
from eval.protocols.fvd import DISTANCES


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
