"""Clips from packed videos; every random choice is a function of (seed, epoch, key)."""

import logging
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from common.seeding import fold, generator
from data.clips.batch_order import SHARDS_PER_GROUP
from data.clips.options import AugmentedClipOptions, ClipOptions, Cut, UnreadableVideos
from data.shards.index import ShardIndex
from data.shards.remote_cache import ShardCache
from data.shards.tars import Entry
from data.video.container import DecodeError

log = logging.getLogger(__name__)

SUBSTITUTES = 16  # tries in a row before a broken data set is given up


@dataclass(frozen=True, kw_only=True)
class PackedClips(ClipOptions):
    """Clips cut from packed videos: the middle of each."""

    folder: str
    """Folder, or address such as https://host/path, with index.json and the shards."""
    cache: str | None = None
    """Folder for shards that are read from an address; default: IVVAE_SHARD_CACHE, else
    ~/.cache/ivvae/shards."""
    cache_gb: Annotated[float, Gt(0)] = 100.0
    """Size that this folder is kept below, in GB (10^9 bytes)."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig(AugmentedClipOptions, PackedClips):
    """Clips cut from packed videos at random, for training."""


class ClipDataset(Dataset):
    """Map-style data set over packed videos: `dataset[(epoch, index)]`.

    Videos too short for the policy, or smaller than `smallest`, are left out before anything is
    indexed and counted in `left_out`; `shard_sizes` and every index count only the rest.

    Args:
        config: where the videos are, and what the clips are.
        seed: of the random choices.
        index: of `config.folder`, if it is loaded already.
        smallest: (height, width) in pixels that a stored video must have.

    Attributes:
        shard_sizes: usable videos per shard, for `BatchOrder`.
        class_names, hash: of the packed data set.
        left_out: number of videos that are too short or small.
        unreadable: videos found unreadable so far (in this process; `batches` adds the workers').

    Raises:
        ValueError: no usable video, or a label outside the class names.
    """

    def __init__(
        self,
        config: PackedClips,
        seed: int,
        index: ShardIndex | None = None,
        *,
        smallest: tuple[int, int] = (0, 0),
    ):
        self.config = config
        self.seed = seed
        self.index = index or load_index(config)
        self.class_names = self.index.class_names
        self.hash = self.index.hash
        entries = self.index.entries
        check_labels(config.folder, entries.label, len(self.class_names))
        strides = config.strides(entries.frames)
        large = (entries.height >= smallest[0]) & (entries.width >= smallest[1])
        self.positions = np.flatnonzero((strides > 0) & large)  # in index.entries
        self.strides = strides[self.positions]
        self.left_out = len(entries) - len(self)
        if not len(self):
            raise ValueError(
                f"{config.folder}: none of {len(entries)} videos has the {config.span} frames of "
                f"{config.frames} at stride {config.stride}; the longest has "
                f"{entries.frames.max(initial=0)}. Lower frames or stride, or set "
                "short_clips to loop."
                if not strides.any()
                else f"{config.folder}: no video that is long enough is {smallest[0]} pixels high "
                f"and {smallest[1]} wide"
            )
        if self.left_out:
            log.warning(
                "%s: %d of %d videos are too short or small and left out",
                config.folder,
                self.left_out,
                len(entries),
            )
        small = (entries.height < config.height) | (entries.width < config.width)
        if enlarged := int(small[self.positions].sum()):
            log.warning(
                "%s: %d of %d videos are smaller than the clips' %d x %d pixels and enlarged, "
                "which adds blur and no detail",
                config.folder,
                enlarged,
                len(self),
                config.height,
                config.width,
            )
        _check_room(self.index, config)
        self.shard_sizes: list[int] = np.bincount(
            self.index.shard_numbers[self.positions], minlength=len(self.index.shards)
        ).tolist()
        self.unreadable = UnreadableVideos(config.max_error_fraction, len(self))

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """The clip of video `index` in `epoch`, `item = (epoch, index)`.

        Returns:
            `video` uint8 `c t h w`, for `common.pixels.to_float`; `label`, -1 without one; `key`;
            `start`, its first source frame; `flip`; and `unreadable`, `(key, reason)` of each
            video that it replaces. The replacement depends only on the seed, the epoch and the
            replaced key.

        Raises:
            ValueError: more videos are unreadable than `max_error_fraction` allows.
        """
        epoch, index = item
        wanted = self.entry(index).key
        unreadable: list[tuple[str, str]] = []
        for attempt in range(SUBSTITUTES):
            try:
                return {**self._random_clip(epoch, index), "unreadable": unreadable}
            except DecodeError as error:
                key = self.entry(index).key
                if get_worker_info() is None:  # a worker reports through its batch instead
                    self.unreadable.add(key, str(error))
                unreadable.append((key, str(error)))
                index = fold(self.seed, "substitute", epoch, wanted, attempt) % len(self)
        raise ValueError(f"{self.config.folder}: {SUBSTITUTES} videos in a row are unreadable")

    def key(self, index: int) -> str:
        """The key of usable video `index`."""
        return self.index.entries.key(int(self.positions[index]))

    def entry(self, index: int) -> Entry:
        """Key, label and stored properties of usable video `index`."""
        return self.index.entries[int(self.positions[index])]

    @property
    def frame_rate(self) -> float:
        """Clip frames per second, Hz: the median over the videos, at the clips' stride."""
        return float(np.median(self.index.entries.fps[self.positions])) / self.config.stride

    def slack(self, index: int) -> int:
        """The last possible first frame of a clip of video `index`; 0 for a looped one."""
        return self.config.slack(self.entry(index).frames, int(self.strides[index]))

    def clip(self, index: int, cut: Cut) -> UInt8[Tensor, "c t h w"]:
        """A clip of video `index`.

        Raises:
            DecodeError: the stored video cannot be read.
        """
        stored = self.index.read(int(self.positions[index]))
        frames, stride = self.entry(index).frames, int(self.strides[index])
        return self.config.clip(stored, frames, stride, cut)

    def check_labeled(self) -> None:
        """Refuse (`ValueError`) videos that have not one of at least two classes each."""
        folder = self.config.folder
        if len(self.class_names) < 2:
            raise ValueError(
                f"{folder}: {len(self.class_names)} classes, but at least 2 are needed"
            )
        unlabeled = np.flatnonzero(self.index.entries.label[self.positions] < 0)
        if len(unlabeled):
            raise ValueError(
                f"{folder}: {len(unlabeled)} of {len(self)} videos have no class, "
                f"{self.key(unlabeled[0])} for one. Pack videos in class folders."
            )

    def _random_clip(self, epoch: int, index: int) -> dict[str, Any]:
        entry = self.entry(index)
        random = generator(self.seed, "clip", epoch, entry.key)
        cut = self.config.choose(self.slack(index), random)
        return {
            "video": self.clip(index, cut),
            "label": -1 if entry.label is None else entry.label,
            "key": entry.key,
            "start": cut.start,
            "flip": cut.flip,
        }


def load_index(config: PackedClips) -> ShardIndex:
    """The index of the packed videos that clips are cut from."""
    return ShardIndex.load(config.folder, ShardCache(config.cache, config.cache_gb))


def check_labels(where: str, labels: Any, classes: int) -> None:
    """Refuse (`ValueError`) labels outside `[0, classes)`; -1 means unlabeled."""
    labels = np.asarray(labels)
    wrong = labels[(labels < -1) | (labels >= classes)]
    if len(wrong):
        raise ValueError(
            f"{where}: label {wrong[0]}, but there are {classes} class names. Pack the data again."
        )


def _check_room(index: ShardIndex, config: PackedClips) -> None:
    """Warn where shards would be downloaded again and again."""
    if not index.is_remote:
        return
    largest = max(shard.bytes for shard in index.shards)
    need = min(sum(shard.bytes for shard in index.shards), 2 * SHARDS_PER_GROUP * largest)
    if need > config.cache_gb * 1e9:
        log.warning(
            "%s: a shuffled order reads from up to %d shards at a time, which takes %.3g GB; with "
            "cache_gb=%s the same shards are downloaded many times",
            config.folder,
            2 * SHARDS_PER_GROUP,
            need / 1e9,
            config.cache_gb,
        )
