"""Several latent caches in one training run."""

from collections.abc import Sequence
from hashlib import sha256

import torch

from data.latents.dataset import LatentDataset, check_alike


def mix_latents(parts: Sequence[LatentDataset], weights: Sequence[float], *, classes: bool) -> None:
    """Normalize all caches by the mean and deviation of their mixture.

    Args:
        parts: the caches; all get the same `mean` and `std`.
        weights: share of the samples of each, relative to the others'.
        classes: their classes must be the same.
    Raises:
        ValueError: caches of different encoders, shapes, scalings or classes.
    """
    for part in parts[1:]:
        check_alike(parts[0], part, classes=classes)
    share = torch.tensor(weights, dtype=torch.float64)
    share = (share / share.sum())[:, None]
    means, stds = (
        torch.stack([getattr(part, name).double() for part in parts]) for name in ("mean", "std")
    )
    mean = (share * means).sum(0)
    variance = (share * (stds.square() + (means - mean).square())).sum(0)
    for part in parts:
        part.mean, part.std = mean.float(), variance.sqrt().float()


def hash_of(parts: Sequence[LatentDataset]) -> str:
    """Hex sha256 of one cache's manifest, or of those of all."""
    if len(parts) == 1:
        return parts[0].hash
    return sha256(" ".join(part.hash for part in parts).encode()).hexdigest()
