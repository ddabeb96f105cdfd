"""Mean and standard deviation of cached latents per channel, in float64, shard by shard."""

from typing import Any

import numpy as np
from jaxtyping import Float16

from common.posterior import LOGVAR_RANGE


def shard_sums(moments: Float16[np.ndarray, "n c2 t h w"]) -> dict[str, Any]:
    """Count, mean and sum of squared deviations per channel of one shard's sampled latents.

    A sample is mean + exp(logvar / 2) * noise, so the expected square of its deviation is
    (mean - average)^2 + exp(logvar). NumPy sums in a fixed order, whatever the number of threads.
    """
    n, c2, t, h, w = moments.shape
    mean = np.zeros(c2 // 2)
    for item in moments:
        mean += item[: c2 // 2].mean(axis=(1, 2, 3), dtype=np.float64)
    mean /= max(n, 1)
    squares = np.zeros(c2 // 2)
    for item in moments:
        center, logvar = np.split(item.astype(np.float64), 2)
        deviation = np.square(center - mean[:, None, None, None])
        squares += (deviation + np.exp(logvar.clip(*LOGVAR_RANGE))).sum(axis=(1, 2, 3))
    return {"count": n * t * h * w, "mean": mean.tolist(), "squares": squares.tolist()}


def merge_sums(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of the whole cache from those of its shards (Chan et al. 1979, eq. 2.1).

    Raises:
        ValueError: no values at all.
    """
    count, mean, squares = 0, np.float64(0), np.float64(0)
    for shard in shards:
        if not shard["count"]:
            continue
        total = count + shard["count"]
        delta = np.array(shard["mean"]) - mean
        squares = squares + np.array(shard["squares"]) + delta**2 * (count * shard["count"] / total)
        mean = mean + delta * (shard["count"] / total)
        count = total
    if not count:
        raise ValueError("no clip could be encoded, so the cache is empty")
    return {
        "of": "sampled raw latents, per channel over all items: the variance is that of the "
        "posterior means plus the mean posterior variance",
        "count_per_channel": count,
        "mean": np.asarray(mean).tolist(),
        "std": np.sqrt(squares / count).tolist(),
    }
