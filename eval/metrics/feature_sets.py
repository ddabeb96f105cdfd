"""Sets of features, one row per clip, as every distance between them needs them."""

import numpy as np
from jaxtyping import Float64
from numpy import ndarray


def checked_features(*sets: ndarray, least: int = 2) -> list[Float64[ndarray, "_ d"]]:
    """The sets in float64, once they are known to be sound.

    Raises:
        ValueError: a set that is no matrix or has fewer than `least` rows, widths that differ, or
            a value that is not finite.
    """
    for features in sets:
        if features.ndim != 2 or len(features) < least:
            raise ValueError(
                f"features of shape {features.shape}: need one row per clip, at least {least} rows"
            )
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{(~finite).sum()} of {len(features)} feature vectors are not finite. Check those "
                "clips and the network."
            )
        if features.shape[1] != sets[0].shape[1]:
            raise ValueError(
                f"features of {sets[0].shape[1]} and of {features.shape[1]} dimensions cannot be "
                "compared. Use the same network for both sets."
            )
    return [features.astype(np.float64) for features in sets]
