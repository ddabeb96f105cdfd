"""The batches of a run, of one size or of several, such as images and clips of several lengths.

Where sizes are mixed, every global batch is of one bucket, a size (frames, height, width). Which
bucket and which clips step s gets is a pure function of (seed, s), as for a single size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from accelerate import Accelerator
from annotated_types import Ge, Gt
from torch.utils.data import Dataset

from common.config import BatchSize, Config, Frames, Pixels
from common.seeding import fold
from data.clips.batch_order import GlobalBatches, Mixture, Source, WeightedRoundRobin, batch_order
from data.clips.dataset import ClipConfig, ClipDataset, load_index
from data.clips.options import Size, UnreadableVideos, collate, report_unreadable
from engine.config import TrainConfig
from engine.prefetch import BatchSource, load_batches

AHEAD = 4  # batches that each worker loads ahead
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
    `ClipDataset`, and where several sources fill a bucket those of a `Mixture` of them.

    Args:
        config: everything but frames, height and width, which the buckets replace.
        sources: further folders, mixed with that of `config` in the buckets that they fill.

    Attributes:
        sets: a data set for each bucket.
        clips: the `ClipDataset`s that they are made of.
        unreadable: unreadable clips of all buckets.

    Raises:
        ValueError: a bucket that fewer videos fill than its batch needs, or a source that fills
            none.
    """

    def __init__(
        self, config: ClipConfig, buckets: BucketConfig, seed: int, sources: Sequence[Source] = ()
    ):
        self.config = buckets
        configs = [config, *(replace(config, folder=source.folder) for source in sources)]
        weights = [1.0, *(source.weight for source in sources)]
        indexes = [load_index(each) for each in configs]
        self.sets: list[Any] = []
        self.clips: list[ClipDataset] = []
        refusals: dict[int, ValueError] = {}
        for bucket in buckets.buckets:
            size = {"frames": bucket.frames, "height": bucket.height, "width": bucket.width}
            smallest = (0, 0) if buckets.enlarge else (bucket.height, bucket.width)
            parts: dict[int, ClipDataset] = {}
            for number, (each, index) in enumerate(zip(configs, indexes, strict=True)):
                try:
                    parts[number] = ClipDataset(
                        replace(each, **size), seed, index, smallest=smallest
                    )
                except ValueError as error:
                    refusals[number] = error
            if not parts:
                raise ValueError(f"bucket {bucket}: {refusals[0]}") from None
            self.clips += parts.values()
            self.sets.append(Mixture(parts, weights) if sources else parts[0])
        used = {part.config.folder for part in self.clips}
        for number, each in enumerate(configs):
            if each.folder not in used:
                raise ValueError(f"{each.folder}: no video fits a bucket: {refusals[number]}")
        self.index = indexes[0]
        self.class_names, self.hash = self.index.class_names, self.index.hash
        total = max(map(len, self.sets))
        self.unreadable = UnreadableVideos(config.max_error_fraction, total)
        for part in self.clips:
            part.unreadable = self.unreadable

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def __getitem__(self, item: tuple[int, ...]) -> dict[str, Any]:
        """The clip of an item of `bucket`, `item = (bucket, *item of its set)`."""
        bucket, *inner = item
        return self.sets[bucket][tuple(inner)]

    def batch_order(self, seed: int) -> "BucketOrder":
        """The order of batches of a training run over these clips.

        Raises:
            ValueError: a bucket has fewer clips than one of its batches.
        """
        orders: list[GlobalBatches] = []
        for bucket, part in zip(self.config.buckets, self.sets, strict=True):
            size, bucket_seed = self.config.batch_size(bucket), fold(seed, "bucket", str(bucket))
            try:
                orders.append(batch_order(part, size, bucket_seed))
            except ValueError as error:
                raise ValueError(f"bucket {bucket}: {error}") from None
        return BucketOrder(orders, [bucket.weight for bucket in self.config.buckets], seed)


class BucketOrder(GlobalBatches):
    """Which bucket and which of its clips make up which global batch, by (seed, step) alone.

    Steps come in cycles of 100 (or as many as there are buckets, if that is more), in which every
    bucket has its share of the steps, to the rounding of one step and at least one, in an order
    drawn anew for each cycle. The n-th step of a bucket takes the n-th batch of the bucket's own
    order, so each bucket goes through its clips epoch by epoch. Global batches of different
    buckets may differ in size.

    Args:
        orders: of each bucket.
        weights: share of the steps of each, relative to the others'.
        seed: changes the order of the buckets.
    """

    def __init__(self, orders: Sequence[GlobalBatches], weights: Sequence[float], seed: int):
        self.orders = list(orders)
        self.batch_sizes = set().union(*(order.batch_sizes for order in orders))
        self.turns = WeightedRoundRobin(weights, seed, name="buckets", cycle=CYCLE)

    def batch(self, step: int) -> list[tuple[int, ...]]:
        """The bucket and the item of each clip of global batch `step`."""
        bucket, visit = self.turns.visit(step)
        return [(bucket, *item) for item in self.orders[bucket].batch(visit)]


def training_batches(dataset: Any, config: TrainConfig, accelerator: Accelerator) -> BatchSource:
    """This process's batches of a training run from any step on, for `engine.train.Trainer`.

    Args:
        dataset: `ClipDataset`, `LatentDataset`, a `Mixture` of either, or `BucketClips`, whose
            buckets' batches take the place of `config.global_batch_size`.

    Raises:
        ValueError: the processes do not divide the global batch, or it exceeds the data set.
    """
    if isinstance(dataset, BucketClips):
        order = dataset.batch_order(config.seed)
    else:
        order = batch_order(dataset, config.global_batch_size, config.seed)
    rank, world = accelerator.process_index, accelerator.num_processes
    order.check_world_size(world)
    return lambda step: batches(dataset, order, step, config.steps, rank, world, config.workers)


def batches(
    dataset: Dataset,
    order: GlobalBatches,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Rank `rank`'s part of each global batch in `[start_step, stop_step)`, in order.

    What is yielded depends on nothing but the data set, the order and the arguments: not on
    `workers`, not on earlier steps, not on any global random state; the ranks together yield the
    global batch. Do not pass the result to `Accelerator.prepare`, which would split it again.
    One set of workers serves all steps, epochs included.

    Args:
        dataset: `ClipDataset`, `LatentDataset` or the like; `BucketClips` with a `BucketOrder`.
        workers: processes that load ahead; 0 loads in this process.

    Returns:
        Items stacked by `default_collate`: tensors with a new first axis, lists of strings; and
        `unreadable_clips`, int64 (b,): how many unreadable clips each item stands in for.

    Raises:
        ValueError: at once, if `world_size` does not divide the global batch or a number is
            negative; later, if a `ClipDataset` meets more unreadable clips than it allows.
    """
    order.check_world_size(world_size)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} must be in [0, {world_size})")
    if start_step < 0 or workers < 0:
        raise ValueError(f"start_step={start_step} and workers={workers} must not be negative")
    steps = range(start_step, stop_step)
    loaded = load_batches(
        dataset,
        workers=workers,
        batch_sampler=(order.local_batch(step, rank, world_size) for step in steps),
        prefetch_factor=AHEAD if workers else None,
        collate_fn=collate,
    )
    return report_unreadable(loaded, getattr(dataset, "unreadable", None))
