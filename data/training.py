"""What a training run takes: clips of packed videos or of a stream, or latents of caches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from common.config import MAY_CHANGE, Config
from common.output_folder import Input
from data.clips.batch_order import Mixture, Source, source_names
from data.clips.batches import Bucket, BucketClips, BucketConfig, training_batches
from data.clips.dataset import ClipConfig, ClipDataset
from data.clips.options import Size, UnreadableVideos
from data.clips.stream import StreamConfig, training_stream
from data.latents.dataset import JointLatents, LatentDataset, Scaling, check_alike, check_labeled
from engine.config import TrainConfig
from engine.losses import Batch
from engine.prefetch import BatchSource


@dataclass(frozen=True, kw_only=True)
class ClipTraining(Config):
    """How long to train, and on which clips."""

    train: TrainConfig
    """Length, batch, optimizer, run folder."""
    data: ClipConfig | None = None
    """Training clips, from indexed shards."""
    stream: StreamConfig | None = None
    """Training clips from shards that are read from start to end, in place of `data`: endless, and
    a run that is resumed sees other clips than one that never stopped."""
    sources: tuple[Source, ...] = ()
    """Further folders, mixed with data.folder, whose weight is 1; `data` says how clips are cut
    from all. With buckets a folder is in those that its videos fill: images in those of one frame.
    """
    buckets: BucketConfig | None = None
    """Sizes of clips to mix, one per step; they replace frames, height and width of `data` and
    train.global_batch_size. null: one size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.data is None) == (self.stream is None):
            raise ValueError("set exactly one of data and stream; the other must be null")
        if self.buckets is not None and self.stream is not None:
            raise ValueError(
                "buckets require data (indexed shards); a stream has clips of one size"
            )
        if self.sources and self.stream is not None:
            raise ValueError(
                "sources are mixed with data, not with a stream: index its shards "
                "(scripts/index_shards.py) and name them in sources"
            )
        if self.data is not None:
            source_names(self.folders)

    @property
    def mix(self) -> list[Bucket]:
        """Every size of clips, with its batch size over all processes and its weight."""
        if self.buckets is not None:
            sizes = self.buckets.buckets
            return [replace(size, batch_size=self.buckets.batch_size(size)) for size in sizes]
        one = self.data or self.stream
        assert one is not None  # __post_init__ has seen to it
        frames, height, width = one.size
        batch_size = self.train.global_batch_size
        return [Bucket(frames=frames, height=height, width=width, batch_size=batch_size)]

    @property
    def sizes(self) -> list[Size]:
        """Frames, height and width of the training clips."""
        return [bucket.size for bucket in self.mix]

    @property
    def clips_per_step(self) -> float:
        """Clips per step over all processes, on average."""
        total = sum(bucket.weight for bucket in self.mix)
        return sum(bucket.weight * (bucket.batch_size or 0) for bucket in self.mix) / total

    @property
    def folders(self) -> list[str]:
        """Of all sources, by number; none for a stream."""
        first = [] if self.data is None else [self.data.folder]
        return [*first, *(source.folder for source in self.sources)]

    def load(self, accelerator: Accelerator) -> tuple[BatchSource, list[ClipDataset]]:
        """Batches from any step on, and the clips that they are made of, by size and folder; [] for
        a stream.

        Raises:
            ValueError: no usable clips, or a batch that the processes or the clips do not divide.
        """
        train = self.train
        if self.stream is not None:
            return training_stream(self.stream, train, accelerator), []
        assert self.data is not None
        if self.buckets is not None:
            mixed = BucketClips(self.data, self.buckets, train.seed, self.sources)
            return training_batches(mixed, train, accelerator), mixed.clips
        configs = [replace(self.data, folder=folder) for folder in self.folders]
        clips = [ClipDataset(config, seed=train.seed) for config in configs]
        if not self.sources:
            return training_batches(clips[0], train, accelerator), clips
        mixture = Mixture(dict(enumerate(clips)), self._weights)
        mixture.unreadable = UnreadableVideos(self.data.max_error_fraction, len(mixture))
        for part in clips:
            part.unreadable = mixture.unreadable
        return training_batches(mixture, train, accelerator), clips

    def inputs(self, clips: list[ClipDataset]) -> dict[str, Input]:
        """What the clips that `load` gave are made from, for the run's identity."""
        if self.stream is not None:
            return {"stream": Input(", ".join(self.stream.urls), self.stream.content())}
        hashes = {part.config.folder: part.hash for part in clips}
        names = ["data", *(f"source {number}" for number in range(1, len(self.folders)))]
        return {
            name: Input(folder, hashes[folder])
            for name, folder in zip(names, self.folders, strict=True)
        }

    def clips_per_source(self, clips: list[ClipDataset]) -> dict[str, tuple[int, float]]:
        """Clips that each source has, and gives per step on average, by its name; nothing for one.

        Args:
            clips: that `load` gave.
        """
        if not self.sources:
            return {}
        weights = dict(zip(self.folders, self._weights, strict=True))
        total = sum(bucket.weight for bucket in self.mix)
        counts, given = dict.fromkeys(self.folders, 0), dict.fromkeys(self.folders, 0.0)
        for bucket in self.mix:
            filling = [part for part in clips if part.config.size == bucket.size]
            shares = sum(weights[part.config.folder] for part in filling)
            for part in filling:
                folder = part.config.folder
                counts[folder] = max(counts[folder], len(part))
                share = weights[folder] / shares * bucket.weight / total
                given[folder] += share * (bucket.batch_size or 0)
        return {
            name: (counts[folder], given[folder])
            for name, folder in zip(source_names(self.folders), self.folders, strict=True)
        }

    @property
    def _weights(self) -> list[float]:
        return [1.0, *(source.weight for source in self.sources)]

    def largest_batch(self, processes: int) -> Batch:
        """Black clips of the size and number that take a process most memory, of at most two
        micro-batches."""
        most, shape = 0, ()
        for bucket in self.mix:
            frames, height, width = bucket.size
            local = (bucket.batch_size or 0) // processes
            at_once = min(local, self.train.micro_batch_size or local)
            if (values := at_once * frames * height * width) > most:
                most, shape = values, (min(local, 2 * at_once), 3, frames, height, width)
        return {"video": torch.zeros(shape, dtype=torch.uint8)}


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

    def clips_per_source(self, parts: Sequence[LatentDataset]) -> dict[str, tuple[int, float]]:
        """Latents that each cache has, and gives per step, by its name; nothing for one cache."""
        if not self.sources:
            return {}
        names, total = source_names(self.folders), sum(self.weights)
        return {
            name: (len(part), weight / total * self.train.global_batch_size)
            for name, part, weight in zip(names, parts, self.weights, strict=True)
        }

    def mix(
        self, parts: Sequence[LatentDataset], images: LatentDataset | None, per_clip: int
    ) -> LatentDataset | JointLatents | Mixture:
        """What is trained on: all caches, with `per_clip` images behind each clip if there are."""
        trained: list[LatentDataset] | list[JointLatents] = list(parts)
        if images is not None:
            trained = [JointLatents(part, images, per_clip) for part in parts]
        return Mixture(dict(enumerate(trained)), self.weights) if self.sources else trained[0]

    def load_held_out(
        self, latents: LatentDataset, *, labeled: bool
    ) -> list[tuple[Float[Tensor, "c t h w"], int]]:
        """What the loss is measured on, with labels; normalized like `latents` to train on.

        Raises:
            ValueError: they are of another kind.
        """
        held_out = LatentDataset(self.held_out or self.latents, "mean", seed=self.train.seed)
        check_alike(latents, held_out, classes=labeled)
        held_out.mean, held_out.std = latents.mean, latents.std
        items = (held_out[0, i] for i in range(min(self.num_held_out_clips, len(held_out))))
        return [(item["latent"], item["label"]) for item in items]


def mix_latents(parts: Sequence[LatentDataset], weights: Sequence[float], *, classes: bool) -> None:
    """Normalize all caches by the mean and deviation of their mixture.

    Args:
        parts: the caches; all get the same `mean` and `std`.
        weights: share of the clips of each, relative to the others'.
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
