"""Which latents a training run takes: of one cache or of several, normalized alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from common.config import MAY_CHANGE, Config
from common.output_folder import Input
from data.clips.batch_order import Mixture, Source, source_names
from data.latents.dataset import (
    JointLatents,
    LatentDataset,
    Scaling,
    check_alike,
    check_labeled,
)
from engine.config import TrainConfig


class HeldOutLatents(Dataset):
    """The first latents of a cache, each with its label.

    Args:
        held_out: The cache.
        count: How many of it at most.
        scaling: What they are normalized like.
    """

    def __init__(self, held_out: LatentDataset, count: int, scaling: LatentDataset):
        self.held_out = held_out
        self.num_clips = min(count, len(held_out))
        self.scaling = scaling

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c t h w"], int]:
        latent, label, _ = self.held_out.draw(0, index)
        return self.scaling.normalize(latent), label


@dataclass(frozen=True, kw_only=True)
class LatentTraining(Config):
    """How long to train, and on which latents."""

    train: TrainConfig
    """Length, batch, optimizer, run folder."""
    latents: str
    """Folder of the latent cache."""
    sources: tuple[Source, ...] = ()
    """Further caches by the same encoder, of the same size and classes, mixed with `latents`, whose
    weight is 1. All are normalized by the statistics of the mixture."""
    posterior: Literal["sample", "mean"] = "sample"
    """Train on posterior samples, drawn anew each epoch, or on means."""
    scaling: Scaling = "cache"
    """Normalize latents by the cache's statistics per channel, or by what is documented of the VAE
    that made them, such as a factor of 0.18215."""
    held_out: Annotated[str | None, MAY_CHANGE] = None
    """Folder of the latents, by the same VAE, whose loss by quarter of the way to noise is measured
    every train.evaluate_every steps. Default: the training latents."""
    num_held_out_clips: Annotated[int, Ge(1), MAY_CHANGE] = 16
    """Their number, the first of the cache."""

    def __post_init__(self) -> None:
        super().__post_init__()
        source_names(self.folders)

    @property
    def folders(self) -> list[str]:
        """The caches of clips."""
        return [self.latents, *(source.folder for source in self.sources)]

    @property
    def weights(self) -> list[float]:
        """Of the caches, in their order."""
        return [1.0, *(source.weight for source in self.sources)]

    def load(self, *, labeled: bool) -> list[LatentDataset]:
        """The caches of clips, normalized alike.

        Raises:
            ValueError: no whole cache, caches that differ, or with `labeled` one without classes.
        """
        parts = [
            LatentDataset(folder, self.posterior, seed=self.train.seed, scaling=self.scaling)
            for folder in self.folders
        ]
        if labeled and not parts[0].class_names:
            raise ValueError(f"{parts[0].folder}: has no classes; set class_conditional to false")
        if self.sources:
            mix_latents(parts, self.weights, classes=labeled)
        for part in parts if labeled else ():
            check_labeled(part)
        return parts

    def load_images(self, folder: str, *, labeled: bool) -> LatentDataset:
        """Images to train on behind the clips.

        Raises:
            ValueError: no whole cache, or with `labeled` an image without a class.
        """
        images = LatentDataset(folder, self.posterior, seed=self.train.seed)
        if labeled:
            check_labeled(images)
        return images

    def inputs(self, parts: Sequence[LatentDataset]) -> dict[str, Input]:
        """What the caches are made from, for the run's identity."""
        names = ["latents", *(f"source {number}" for number in range(1, len(parts)))]
        return {
            name: Input(folder, part.hash)
            for name, folder, part in zip(names, self.folders, parts, strict=True)
        }

    def clips_per_source(
        self, parts: Sequence[LatentDataset], clips: LatentDataset | JointLatents | Mixture
    ) -> dict[str, tuple[int, float]]:
        """Latents that each cache has, and gives per step, by its name; nothing for one cache.

        Args:
            parts: the caches.
            clips: what `mix` made of them.
        """
        if not isinstance(clips, Mixture):
            return {}
        return {
            name: (len(part), clips.shares[number] * self.train.global_batch_size)
            for number, (name, part) in enumerate(
                zip(source_names(self.folders), parts, strict=True)
            )
        }

    def mix(
        self, parts: Sequence[LatentDataset], images: LatentDataset | None, per_clip: int
    ) -> LatentDataset | JointLatents | Mixture:
        """What is trained on: all caches, with `per_clip` images behind each clip if there are."""
        trained: list[LatentDataset] | list[JointLatents] = list(parts)
        if images is not None:
            trained = [JointLatents(part, images, per_clip) for part in parts]
        return Mixture(dict(enumerate(trained)), self.weights) if self.sources else trained[0]

    def load_held_out(self, latents: LatentDataset, *, labeled: bool) -> HeldOutLatents:
        """What the loss is measured on: normalized like `latents`, those that are trained on.

        Raises:
            ValueError: they are of another kind.
        """
        held_out = LatentDataset(self.held_out or self.latents, "mean", seed=self.train.seed)
        check_alike(latents, held_out, classes=labeled)
        return HeldOutLatents(held_out, self.num_held_out_clips, latents)


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
