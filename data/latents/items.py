"""What a latent cache consists of: which clip of which video is which item of which shard."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le
from torch.utils.data import Dataset

from common.config import Config
from common.seeding import fold
from data.clips.dataset import ClipDataset
from data.video.decode import DecodeError


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
        """`item`; `video` uint8 `c t h w`, or None; `reason`, why it is unreadable."""
        item = self.item(number)
        try:
            video = self.clips.clip(item.index, item.start, flip=item.flip)
        except DecodeError as error:
            return {"item": item, "video": None, "reason": str(error)}
        return {"item": item, "video": video, "reason": ""}

    def item(self, number: int) -> Item:
        """Which clip item `number` is."""
        index, variant = divmod(number, self.per_video)
        clip, flip = divmod(variant, 1 + self.config.flip)
        key = self.clips.entry(index).key
        at = fold(self.config.seed, "clip start", key, clip) / 2**63
        start = int((self.clips.slack(index) + 1) * (clip + at) / self.config.clips_per_video)
        return Item(index, f"{key}:{clip}" + (":flip" if flip else ""), start, bool(flip))

    def in_shard(self, shard: int) -> range:
        """The item numbers of a shard."""
        size = self.config.items_per_shard
        return range(shard * size, min((shard + 1) * size, len(self)))
