"""Batches of mixed sizes: images and clips of several lengths and resolutions in one run.

Every global batch is of one bucket, a size (frames, height, width). Which bucket and which samples
step s gets is a pure function of (seed, s), as for a single size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt
from torch.utils.data import Dataset

from common.config import BatchSize, Config, Frames, Pixels
from common.seeding import fold
from data.clips.batch_order import BatchOrder
from data.clips.dataset import ClipConfig, ClipDataset
from data.clips.options import Size, UnreadableVideos

CYCLE = 100
"""Steps in which every bucket has its share of the batches."""


@dataclass(frozen=True, kw_only=True)
class Bucket(Config):
    """One size of clips."""

    frames: Frames
    """Frames per clip; 1 for images."""
    height: Pixels
    """Pixels."""
    width: Pixels
    """Pixels."""
    weight: Annotated[float, Gt(0)] = 1.0
    """Share of the steps, relative to the other buckets'."""
    batch_size: BatchSize | None = None
    """Clips per step over all processes; default: as many as `pixels` allows."""

    @property
    def size(self) -> Size:
        """Frames, height and width of a clip."""
        return self.frames, self.height, self.width

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True)
class BucketConfig(Config):
    """Which sizes are mixed, and how many clips of each make a batch."""

    buckets: tuple[Bucket, ...]
    """The sizes."""
    pixels: Annotated[int | None, Ge(1)] = None
    """Most pixels (frames x height x width x clips) per step over all processes, for buckets
    without a batch of their own, whose clips are then the largest power of two that fits."""
    enlarge: bool = False
    """Let videos smaller than a bucket fill it, enlarged; otherwise they go to smaller ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.buckets:
            raise ValueError("buckets is empty: give at least one size")
        names = [str(bucket) for bucket in self.buckets]
        if len(set(names)) < len(names):
            raise ValueError(f"buckets {', '.join(names)}: each size may occur once")
        for bucket in self.buckets:
            self.batch_size(bucket)

    def batch_size(self, bucket: Bucket) -> int:
        """Clips per step of a bucket, over all processes.

        Raises:
            ValueError: it has no batch, and no clip of it fits into `pixels`.
        """
        if bucket.batch_size is not None:
            return bucket.batch_size
        if self.pixels is None:
            raise ValueError(f"bucket {bucket}: give its batch_size, or pixels for all buckets")
        fitting = self.pixels // (bucket.frames * bucket.height * bucket.width)
        if fitting < 1:
            raise ValueError(f"bucket {bucket}: one clip is more than pixels={self.pixels}")
        return 1 << (fitting.bit_length() - 1)


class BucketClips(Dataset):
    """Clips of several sizes from the same packed videos: `dataset[(bucket, epoch, index)]`.

    A video is in every bucket that it fills: long enough for its frames under
    `config.short_clips`, and, unless `enlarge`, at least as high and wide. Items are those of
    `ClipDataset`.

    Args:
        config: everything but frames, height and width, which the buckets replace.

    Attributes:
        sets: a `ClipDataset` for each bucket.
        unreadable: unreadable samples of all buckets.

    Raises:
        ValueError: a bucket that fewer videos fill than its batch needs.
    """

    def __init__(self, config: ClipConfig, buckets: BucketConfig, seed: int):
        self.config = buckets
        self.sets: list[ClipDataset] = []
        for bucket in buckets.buckets:
            size = {"frames": bucket.frames, "height": bucket.height, "width": bucket.width}
            options = replace(config, **size)
            index = self.sets[0].index if self.sets else None
            smallest = (0, 0) if buckets.enlarge else (bucket.height, bucket.width)
            try:
                self.sets.append(ClipDataset(options, seed, index, smallest=smallest))
            except ValueError as error:
                raise ValueError(f"bucket {bucket}: {error}") from None
        self.index = self.sets[0].index
        self.class_names, self.hash = self.index.class_names, self.index.hash
        self.unreadable = UnreadableVideos(config.max_error_fraction, max(map(len, self.sets)))
        for part in self.sets:
            part.unreadable = self.unreadable

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def __getitem__(self, item: tuple[int, int, int]) -> dict[str, Any]:
        """The clip of sample `index` of `bucket` in `epoch`; see `ClipDataset`."""
        bucket, epoch, index = item
        return self.sets[bucket][epoch, index]

    def batch_order(self, seed: int) -> "BucketOrder":
        """The order of batches of a training run over these clips.

        Raises:
            ValueError: a bucket has fewer clips than one of its batches.
        """
        orders = []
        for bucket, part in zip(self.config.buckets, self.sets, strict=True):
            name, size = str(bucket), self.config.batch_size(bucket)
            try:
                orders.append(BatchOrder(part.shard_sizes, size, fold(seed, "bucket", name)))
            except ValueError as error:
                raise ValueError(f"bucket {bucket}: {error}") from None
        return BucketOrder(orders, [bucket.weight for bucket in self.config.buckets], seed)


class BucketOrder:
    """Which bucket and which of its samples make up which global batch, by (seed, step) alone.

    Steps come in cycles of 100 (or as many as there are buckets, if that is more), in which every
    bucket has its share of the steps, to the rounding of one step and at least one, in an order
    drawn anew for each cycle. The n-th step of a bucket takes the n-th batch of the bucket's own
    order, so each bucket goes through its samples epoch by epoch. Global batches of different
    buckets may differ in size.

    Args:
        orders: of each bucket.
        weights: share of the steps of each, relative to the others'.
        seed: changes the order of the buckets.
    """

    def __init__(self, orders: Sequence[BatchOrder], weights: Sequence[float], seed: int):
        self.orders = list(orders)
        self.seed = seed
        self.cycle = _shares(weights, max(CYCLE, len(weights)))  # the bucket of each of its steps
        self._counts = np.bincount(self.cycle, minlength=len(weights))

    def visit(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many steps before it had the same."""
        cycle, position = divmod(step, len(self.cycle))
        rng = np.random.default_rng(fold(self.seed, "buckets", cycle))
        order = rng.permutation(self.cycle)
        bucket = int(order[position])
        before = cycle * int(self._counts[bucket]) + int((order[:position] == bucket).sum())
        return bucket, before

    def batch(self, step: int) -> list[tuple[int, int, int]]:
        """The `(bucket, epoch, index)` of each sample of global batch `step`."""
        bucket, visit = self.visit(step)
        return [(bucket, epoch, index) for epoch, index in self.orders[bucket].batch(visit)]

    def local_batch(self, step: int, rank: int, world_size: int) -> list[tuple[int, int, int]]:
        """Rank `rank`'s contiguous part of `batch(step)`.

        Raises:
            ValueError: `world_size` does not divide the bucket's batch.
        """
        bucket, visit = self.visit(step)
        part = self.orders[bucket].local_batch(visit, rank, world_size)
        return [(bucket, epoch, index) for epoch, index in part]

    def check_world_size(self, world_size: int) -> None:
        """Refuse (`ValueError`) a number of processes that does not divide every bucket's batch."""
        for order in self.orders:
            order.check_world_size(world_size)


def _shares(weights: Sequence[float], steps: int) -> np.ndarray:
    """`steps` bucket numbers in proportion to the weights (largest remainders), each at least 1."""
    exact = np.asarray(weights) / np.sum(weights) * steps
    counts = np.maximum(1, np.floor(exact).astype(int))
    while counts.sum() != steps:
        step = 1 if counts.sum() < steps else -1
        allowed = np.where(counts + step >= 1, (exact - counts) * step, -np.inf)
        counts[np.argmax(allowed)] += step
    return np.repeat(np.arange(len(counts)), counts)
