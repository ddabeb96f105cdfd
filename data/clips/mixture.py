"""Several sources of samples in one training run, each with its share of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from torch import nn
from torch.utils.data import Dataset

from common.config import Config
from data.clips.batch_order import BatchOrder, GlobalBatches, MixedOrder
from data.clips.options import UnreadableVideos
from engine.optimization import Batch, Losses, LossFunction, StepInfo


@dataclass(frozen=True, kw_only=True)
class Source(Config):
    """A further folder that samples come from."""

    folder: str
    """Folder of packed videos or images; for Latte of a latent cache."""
    weight: Annotated[float, Gt(0)] = 1.0
    """Its share of the samples, relative to 1 of the main folder and to the other sources'."""


class Mixture(Dataset):
    """Items of several data sets: `dataset[(source, epoch, index)]`.

    Args:
        parts: the data sets by the number of their source; items of one source may be items of
            several sources in another bucket.
        weights: of all sources, by number.

    Attributes:
        unreadable: unreadable samples of all parts that are clips; None of latents.
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

    @property
    def shares(self) -> dict[int, float]:
        """Each source's share of the samples."""
        total = sum(self.weights.values())
        return {number: weight / total for number, weight in self.weights.items()}


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
