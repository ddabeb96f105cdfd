"""Which items of one source or several make up which global batch, by (seed, step) alone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt
from torch import nn
from torch.utils.data import Dataset

from common.config import Config
from common.seeding import fold
from data.clips.options import UnreadableVideos
from engine.losses import Batch, Losses, LossFunction, StepInfo

SHARDS_PER_GROUP = 8
ITEMS_PER_CYCLE = 1000
"""Items in which every source of a mixture has its share."""


class GlobalBatches(ABC):
    """Global batches by step, of which each process takes its part."""

    batch_sizes: set[int]
    """Items that a global batch may have."""

    @abstractmethod
    def batch(self, step: int) -> list[tuple[int, ...]]:
        """The items of global batch `step`, as the data set takes it."""

    def local_batch(self, step: int, rank: int, world_size: int) -> list[tuple[int, ...]]:
        """Rank `rank`'s contiguous part of `batch(step)`.

        Raises:
            ValueError: `world_size` does not divide the global batches.
        """
        self.check_world_size(world_size)
        items = self.batch(step)
        size = len(items) // world_size
        return items[rank * size : (rank + 1) * size]

    def check_world_size(self, world_size: int) -> None:
        """Refuse (`ValueError`) a number of processes that does not divide every global batch."""
        for size in self.batch_sizes:
            if size % world_size:
                fitting = [n for n in range(1, world_size + 1) if size % n == 0]
                raise ValueError(
                    f"{world_size} processes do not divide the global batch of {size}. Start "
                    f"{fitting[-1]} processes or use a global batch of "
                    f"{-(-size // world_size) * world_size}."
                )


class BatchOrder(GlobalBatches):
    """The order of a training run over a sharded data set.

    Each epoch permutes the shards, puts 8 to 15 of them into a group (fewer only if there are
    fewer), shuffles the items inside each group and concatenates the groups: random enough to
    train on, local enough for the page cache. Global batch `step` is a slice of its epoch's order,
    so nothing but the step has to be saved to resume, and neither the number of processes nor the
    number of loader workers changes what is trained on. The tail of an epoch that does not fill a
    global batch is dropped, another one each epoch.

    Args:
        shard_sizes: items in each shard; item indices count through the shards in this order.
        batch_size: items per step over all processes.
        seed: changes the order of every epoch.

    Raises:
        ValueError: no positive batch, or fewer items than one global batch.
    """

    def __init__(self, shard_sizes: Sequence[int], batch_size: int, seed: int):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.num_items = int(self.shard_sizes.sum())
        if self.num_items < batch_size:
            raise ValueError(
                f"the data set has {self.num_items} items, fewer than one global batch of "
                f"{batch_size}. Lower the batch size or the number of processes, or add data."
            )
        self.batch_size = batch_size
        self.batch_sizes = {batch_size}
        self.seed = seed
        self.steps_per_epoch = self.num_items // batch_size
        self._cached: tuple[int, np.ndarray] | None = None

    def epoch_order(self, epoch: int) -> np.ndarray:
        """All item indices in the order of `epoch`, int64, each exactly once."""
        rng = np.random.default_rng(fold(self.seed, "order", epoch))
        shards = rng.permutation(len(self.shard_sizes))
        members = np.split(np.arange(self.num_items), np.cumsum(self.shard_sizes)[:-1])
        groups = np.array_split(shards, max(1, len(shards) // SHARDS_PER_GROUP))
        return np.concatenate(
            [
                rng.permutation(np.concatenate([members[shard] for shard in group]))
                for group in groups
            ]
        )

    def batch(self, step: int) -> list[tuple[int, ...]]:
        """The `(epoch, index)` of each item of global batch `step`; steps count over epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        cached = self._cached  # a copy: loaders of several streams may ask from their own threads
        if cached is None or cached[0] != epoch:
            cached = self._cached = (epoch, self.epoch_order(epoch))
        start = position * self.batch_size
        indices = cached[1][start : start + self.batch_size]
        return [(epoch, index) for index in indices.tolist()]


class MixedOrder(GlobalBatches):
    """The order of a training run over several data sets, each with its share of the items.

    The items of the global batches, one after the other, are taken from the sources by
    `WeightedRoundRobin`; a source's n-th turn takes the n-th item of its own `BatchOrder`. So each
    source goes through its items epoch by epoch, none is dropped, and a batch mixes sources.

    Args:
        shard_sizes: of each source, by its number.
        weights: share of the items of each, relative to the others'.
        batch_size, seed: as for `BatchOrder`.
    """

    def __init__(
        self,
        shard_sizes: Mapping[int, Sequence[int]],
        weights: Mapping[int, float],
        batch_size: int,
        seed: int,
    ):
        self.batch_size = batch_size
        self.batch_sizes = {batch_size}
        self.numbers = sorted(shard_sizes)
        self.orders = {
            number: BatchOrder(shard_sizes[number], 1, fold(seed, "source", number))
            for number in self.numbers
        }
        shares = [weights[number] for number in self.numbers]
        self.turns = WeightedRoundRobin(shares, seed, name="sources", cycle=ITEMS_PER_CYCLE)

    def batch(self, step: int) -> list[tuple[int, ...]]:
        """The `(source, epoch, index)` of each item of global batch `step`."""
        items = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            turn, before = self.turns.visit(position)
            number = self.numbers[turn]
            items.append((number, *self.orders[number].batch(before)[0]))
        return items


class WeightedRoundRobin:
    """Which of several things has which turn, each its share of them, by (seed, turn) alone.

    Turns come in cycles, in which each has its share, to the rounding of one turn and at least one,
    in an order drawn anew for each cycle.

    Args:
        weights: share of each, relative to the others'.
        seed, name: of the order.
        cycle: turns in a cycle, or as many as there are weights, if that is more.
    """

    def __init__(self, weights: Sequence[float], seed: int, *, name: str, cycle: int):
        self.seed = seed
        self.name = name
        self.cycle = _shares(weights, max(cycle, len(weights)))  # whose each of its turns is
        self._counts = np.bincount(self.cycle, minlength=len(weights))
        self._cached: tuple[int, np.ndarray, np.ndarray] | None = None

    def visit(self, turn: int) -> tuple[int, int]:
        """Whose `turn` it is, and how many turns before it were the same one's."""
        cycle, position = divmod(turn, len(self.cycle))
        cached = self._cached  # a copy, as in `BatchOrder.batch`
        if cached is None or cached[0] != cycle:
            order = np.random.default_rng(fold(self.seed, self.name, cycle)).permutation(self.cycle)
            before = np.zeros_like(order)
            for number, count in enumerate(self._counts):
                before[order == number] = np.arange(count)
            cached = self._cached = (cycle, order, before)
        number = int(cached[1][position])
        return number, cycle * int(self._counts[number]) + int(cached[2][position])


@dataclass(frozen=True, kw_only=True)
class Source(Config):
    """A further folder that items come from."""

    folder: str
    """Folder of packed videos or images; for Latte of a latent cache."""
    weight: Annotated[float, Gt(0)] = 1.0
    """Its share of the items, relative to 1 of the main folder and to the other sources'."""


class Mixture(Dataset):
    """Items of several data sets: `dataset[(source, epoch, index)]`.

    Args:
        parts: the data sets by the number of their source; items of one source may be items of
            several sources in another bucket.
        weights: of all sources, by number.

    Attributes:
        unreadable: unreadable clips of all parts that are clips; None of latents.
    """

    def __init__(self, parts: Mapping[int, Any], weights: Sequence[float]):
        self.parts = dict(parts)
        self.weights = {number: weights[number] for number in self.parts}
        self.unreadable: UnreadableVideos | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __getitem__(self, item: tuple[int, ...]) -> dict[str, Any]:
        """The item of a source, and its number as `source`."""
        source, *inner = item
        return {**self.parts[source][tuple(inner)], "source": source}


def batch_order(dataset: Any, batch_size: int, seed: int) -> GlobalBatches:
    """The order of batches of a training run over one data set, or over a mixture of several.

    Raises:
        ValueError: the data set is smaller than a batch.
    """
    if not isinstance(dataset, Mixture):
        return BatchOrder(dataset.shard_sizes, batch_size, seed)
    sizes = {number: part.shard_sizes for number, part in dataset.parts.items()}
    return MixedOrder(sizes, dataset.weights, batch_size, seed)


def source_names(folders: Sequence[str]) -> list[str]:
    """What the folders are called in logs: the last part of their paths, all of it where two have
    the same.

    Raises:
        ValueError: a folder that is given twice.
    """
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise ValueError(f"sources: {min(twice)} is given twice; give it once, with its weight")
    short = [Path(folder).name for folder in folders]
    return [
        folder if short.count(name) > 1 else name
        for folder, name in zip(folders, short, strict=True)
    ]


def logging_sources(loss_function: LossFunction, names: Sequence[str]) -> LossFunction:
    """The same loss, which also reports the share of the clips that came from each source."""

    def with_shares(module: nn.Module, batch: Batch, info: StepInfo) -> Losses:
        losses = loss_function(module, batch, info)
        if "source" not in batch:
            return losses
        given = batch["source"]
        shares = {
            f"source/{name}": (given == number).float().mean() for number, name in enumerate(names)
        }
        return losses._replace(values={**losses.values, **shares})

    return with_shares


def _shares(weights: Sequence[float], turns: int) -> np.ndarray:
    """`turns` numbers in proportion to the weights (largest remainders), each at least once."""
    exact = np.asarray(weights) / np.sum(weights) * turns
    counts = np.maximum(1, np.floor(exact).astype(int))
    while counts.sum() != turns:
        step = 1 if counts.sum() < turns else -1
        allowed = np.where(counts + step >= 1, (exact - counts) * step, -np.inf)
        counts[np.argmax(allowed)] += step
    return np.repeat(np.arange(len(counts)), counts)
