"""What a latent cache consists of: items, each a clip of a video, in shards.

Shards are safetensors files, each with a record that tells whether it is done.

latents-000000.safetensors   moments [n, 2c, t, h, w] float16 (mean, log-variance), label,
                             clip_start, flip; keys in the metadata
latents-000000.json          `ShardRecord`: checksum, failures, sums for the cache's statistics
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import safetensors.torch
import torch
from annotated_types import Ge, Le
from jaxtyping import Float16
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from common.config import Config
from common.files import atomic_path, read_json, sha256_file, write_json
from common.posterior import LOGVAR_RANGE
from common.seeding import fold
from data.clips.dataset import ClipDataset, check_labels
from data.clips.options import Cut
from data.video.container import DecodeError

Failures = list[dict[str, str]]
"""Key, video and reason of each clip that cannot be read."""
REPAIR = "Run scripts/cache_latents.py again with the same options; it makes such shards anew."


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Config):
    """Which clips of each video are cached."""

    clips_per_video: Annotated[int, Ge(1), Le(10_000)] = 1
    """Clips per video; each starts at a fixed random place in its own equal part of the video."""
    flip: bool = False
    """Also encode every clip with its pixels mirrored. Not for time-lapse skies."""
    seed: int = 0
    """Of the clips' starts."""
    items_per_shard: Annotated[int, Ge(1)] = 512
    """Latents per shard."""


@dataclass(frozen=True)
class Item:
    """One latent to make."""

    index: int
    """Which video of the clip data set."""
    key: str
    """Unique: the video's key, the clip's number, and whether it is mirrored."""
    start: int
    """First source frame."""
    flip: bool
    """Whether the pixels are mirrored."""
    label: int | None
    """Of the video."""


class CacheItems(Dataset):
    """The clips to cache, numbered: `items[number]` decodes one.

    A video's items follow each other: its clips in time, each plain, then mirrored if `flip`.
    Shards are `items_per_shard` items in a row.

    Attributes:
        shards: how many shards there are.
    """

    def __init__(self, clips: ClipDataset, config: CacheConfig):
        self.clips = clips
        self.config = config
        self.per_video = config.clips_per_video * (1 + config.flip)
        self.shards = math.ceil(len(self) / config.items_per_shard)

    def __len__(self) -> int:
        return len(self.clips) * self.per_video

    def __getitem__(self, number: int) -> dict[str, Any]:
        """`item` and `video`, uint8 `c t h w`; or `failure`: key, video and reason."""
        item = self.item(number)
        try:
            video = self.clips.clip(item.index, Cut(item.start, flip=item.flip))
            return {"item": item, "video": video}
        except DecodeError as error:
            name = self.clips.entry(item.index).key
            return {"failure": {"key": item.key, "video": name, "reason": str(error)}}

    def item(self, number: int) -> Item:
        """Which clip item `number` is."""
        index, variant = divmod(number, self.per_video)
        clip, flip = divmod(variant, 1 + self.config.flip)
        video = self.clips.entry(index)
        at = fold(self.config.seed, "clip start", video.key, clip) / 2**63
        start = int((self.clips.slack(index) + 1) * (clip + at) / self.config.clips_per_video)
        key = f"{video.key}:{clip}" + (":flip" if flip else "")
        return Item(index, key, start, bool(flip), video.label)

    def in_shard(self, shard: int) -> range:
        """The item numbers of a shard."""
        size = self.config.items_per_shard
        return range(shard * size, min((shard + 1) * size, len(self)))


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a shard; kept as JSON beside it."""

    file: str
    """Its name."""
    count: int
    """Items in it."""
    bytes: int
    """Its size."""
    sha256: str
    """Of the whole file."""
    failures: Failures
    """Clips left out."""
    sums: dict[str, Any]
    """`shard_sums` of its moments."""

    @classmethod
    def load(cls, shard: Path) -> Self | None:
        """The record of a shard; None if that or the shard is absent or the shard cut short.

        Raises:
            ValueError: the record is damaged.
        """
        path = shard.with_suffix(".json")
        if not (shard.exists() and path.exists()):
            return None
        try:
            record = cls(**read_json(path))
        except TypeError as error:
            raise ValueError(f"{path}: damaged ({error}). Delete it and run again.") from None
        return record if record.bytes == shard.stat().st_size else None


def shard_path(folder: Path, number: int) -> Path:
    """The file of shard `number`."""
    return folder / f"latents-{number:06d}.safetensors"


def is_done(shard: Path) -> bool:
    """Whether a shard is there with its recorded checksum."""
    record = ShardRecord.load(shard)
    return record is not None and sha256_file(shard) == record.sha256


def write_shard(
    path: Path,
    moments: Sequence[Float16[Tensor, "_ c2 t h w"]],
    items: Sequence[Item],
    failures: Failures,
) -> None:
    """Write a shard and its record; each file appears whole or not at all.

    Args:
        moments: of `items`, some in each tensor.
        failures: the clips left out.
    """
    together = torch.cat(list(moments)).contiguous()  # models may lay them out channels-last
    labels = [-1 if item.label is None else item.label for item in items]
    data = safetensors.torch.save(
        {
            "moments": together,
            "label": torch.tensor(labels, dtype=torch.int64),
            "clip_start": torch.tensor([item.start for item in items], dtype=torch.int64),
            "flip": torch.tensor([item.flip for item in items], dtype=torch.bool),
        },
        metadata={"keys": json.dumps([item.key for item in items])},
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    record = ShardRecord(
        file=path.name,
        count=len(items),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        failures=failures,
        sums=shard_sums(together.numpy()),
    )
    write_json(path.with_suffix(".json"), asdict(record))


class ShardReader:
    """One memory-mapped shard.

    Raises:
        ValueError: it is damaged, or a label has no class name.
    """

    def __init__(self, path: Path, classes: int):
        try:
            self.file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{path}: {error}. {REPAIR}") from None
        self.moments = self.file.get_tensor("moments")  # mapped, not read
        self.keys: list[str] = json.loads(self.file.metadata()["keys"])
        self.labels, self.starts, self.flips = (
            self.file.get_tensor(name).tolist() for name in ("label", "clip_start", "flip")
        )
        check_labels(str(path), self.labels, classes)

    def item(self, row: int) -> dict[str, Any]:
        """One item; `moments` is the mapped file itself, not to be changed."""
        return {
            "moments": self.moments[row],
            "label": self.labels[row],
            "key": self.keys[row],
            "start": self.starts[row],
            "flip": self.flips[row],
        }


def shard_sums(moments: Float16[np.ndarray, "n c2 t h w"]) -> dict[str, Any]:
    """Count, mean and sum of squared deviations per channel of one shard's sampled latents.

    In float64. A sample is mean + exp(logvar / 2) * noise, so the expected square of its deviation
    is (mean - average)^2 + exp(logvar). NumPy sums in a fixed order, whatever the number of
    threads.
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


def merge_sums(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
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
