"""Clips from packed videos; every random choice is a function of (seed, epoch, sample key)."""

import logging
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from data.decode import DecodeError, read_frames
from data.shards import ShardIndex
from data.transforms import Filter, fit
from engine.seeding import fold, generator

log = logging.getLogger(__name__)

SUBSTITUTES = 16  # tries in a row before a broken data set is given up


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Clips cut from packed videos."""

    folder: str
    """Folder with index.json and the shards."""
    frames: int = 17
    """Frames per clip; 1 gives images."""
    interval: int = 1
    """Source frames from one clip frame to the next."""
    height: int = 256
    """Clip height, pixels."""
    width: int = 256
    """Clip width, pixels."""
    start: Literal["random", "center"] = "random"
    """First frame: anew each epoch, or so that the clip lies in the middle of its video."""
    crop: Literal["random", "center"] = "random"
    """Crop after the resize that keeps the aspect ratio."""
    flip: bool = False
    """Mirror half of the clips, chosen anew each epoch. Not for time-lapse skies."""
    short: Literal["skip", "loop", "shrink_interval"] = "skip"
    """Videos shorter than a clip: left out; repeated from their start; or read at the largest
    interval that fits (left out where even 1 does not)."""
    filter: Filter = "bicubic"
    """Kernel of the antialiased resize."""
    strict: bool = True
    """Refuse videos with damaged data; otherwise decoders hide it in grey or smeared frames."""
    max_bad_fraction: float = 0.0
    """Fraction of samples that may fail to decode and be replaced by others; 0 stops at once."""

    def __post_init__(self) -> None:
        for name in ("frames", "interval", "height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.max_bad_fraction < 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction} must be in [0, 1)")

    @property
    def span(self) -> int:
        """Source frames that one clip covers."""
        return (self.frames - 1) * self.interval + 1


class Quarantine:
    """Keys of samples that could not be read; refuses to grow above `limit`."""

    def __init__(self, limit: float, total: int):
        self.limit = limit
        self.total = total
        self.reasons: dict[str, str] = {}

    def add(self, key: str, reason: str) -> None:
        """Count a sample, once, and log it.

        Raises:
            ValueError: more than the allowed fraction of all samples is bad.
        """
        if key in self.reasons:
            return
        self.reasons[key] = reason
        if len(self.reasons) > self.limit * self.total:
            raise ValueError(
                f"sample {key}: {reason}. That makes {len(self.reasons)} bad of {self.total}, "
                f"but max_bad_fraction={self.limit}. Pack the data again or raise the limit."
            )
        log.warning("sample %s left out: %s", key, reason)


class ClipDataset(Dataset):
    """Map-style data set over packed videos: `dataset[(epoch, index)]`.

    Samples too short for the policy are left out before anything is indexed and counted in
    `left_out`; `shard_sizes` and every index count only the rest.

    Attributes:
        shard_sizes: usable samples per shard, for `BatchPlan`.
        class_names, hash: of the packed data set.
        left_out: number of samples that are too short.
        quarantine: samples found unreadable so far (in this process; `batches` adds the workers').

    Raises:
        ValueError: no usable sample, or a label outside the class names.
    """

    def __init__(self, config: ClipConfig, seed: int):
        self.config = config
        self.seed = seed
        self.index = ShardIndex.load(config.folder)
        self.class_names = self.index.class_names
        self.hash = self.index.hash
        samples = self.index.samples
        check_labels(config.folder, (sample.label for sample in samples), len(self.class_names))
        usable = [i for i, sample in enumerate(samples) if self._interval(sample.frames)]
        self.positions = np.array(usable, dtype=np.int64)  # into index.samples
        self.left_out = len(samples) - len(usable)
        if not usable:
            longest = max((sample.frames for sample in samples), default=0)
            raise ValueError(
                f"{config.folder}: none of {len(samples)} videos has the {config.span} frames of "
                f"{config.frames} at interval {config.interval}; the longest has {longest}. "
                "Lower frames or interval, or set short to loop."
            )
        if self.left_out:
            log.warning(
                "%s: %d of %d videos are too short and left out",
                config.folder,
                self.left_out,
                len(samples),
            )
        counts = Counter(samples[i].shard for i in usable)
        self.shard_sizes = [counts[shard] for shard in range(len(self.index.shard_sizes))]
        self.quarantine = Quarantine(config.max_bad_fraction, len(usable))

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """The clip of sample `index` in `epoch`, `item = (epoch, index)`.

        Returns:
            `video` float32 `c t h w` in [-1, 1]; `label`, -1 without one; `key`; `start`, its first
            source frame; `flip`; and `bad`, `(key, reason)` of each unreadable sample that it
            replaces. The replacement depends only on the seed, the epoch and the replaced key.

        Raises:
            ValueError: more samples are unreadable than `max_bad_fraction` allows.
        """
        epoch, index = item
        wanted = self.sample(index).key
        bad: list[tuple[str, str]] = []
        for attempt in range(SUBSTITUTES):
            try:
                return {**self._random_clip(epoch, index), "bad": bad}
            except DecodeError as error:
                key = self.sample(index).key
                if get_worker_info() is None:  # a worker reports through its batch instead
                    self.quarantine.add(key, str(error))
                bad.append((key, str(error)))
                index = fold(self.seed, "substitute", epoch, wanted, attempt) % len(self)
        raise ValueError(f"{self.config.folder}: {SUBSTITUTES} samples in a row are unreadable")

    def sample(self, index: int) -> Any:
        """Key, label and stored properties of usable sample `index`."""
        return self.index.samples[self.positions[index]]

    @property
    def frame_rate(self) -> float:
        """Clip frames per second, Hz: the median over the videos, at the clips' interval."""
        return median(self.sample(i).fps for i in range(len(self))) / self.config.interval

    def slack(self, index: int) -> int:
        """The last possible first frame of a clip of sample `index`; 0 for a looped one."""
        frames = self.sample(index).frames
        return max(0, frames - 1 - (self.config.frames - 1) * self._interval(frames))

    def clip(
        self, index: int, start: int, crop: tuple[float, float] = (0.5, 0.5), flip: bool = False
    ) -> Float[Tensor, "c t h w"]:
        """The clip of sample `index` from source frame `start`; see `fit` for crop and flip.

        Only the clip's frames are kept and resized.

        Raises:
            DecodeError: the stored video cannot be read.
        """
        count, config = self.sample(index).frames, self.config
        wanted = (start + np.arange(config.frames) * self._interval(count)) % count
        stored = self.index.read(int(self.positions[index]))
        frames = torch.from_numpy(read_frames(stored, wanted.tolist(), strict=config.strict))
        return fit(frames, config.height, config.width, crop=crop, flip=flip, filter=config.filter)

    def _random_clip(self, epoch: int, index: int) -> dict[str, Any]:
        config, sample, slack = self.config, self.sample(index), self.slack(index)
        random = generator(self.seed, "clip", epoch, sample.key)
        at, y, x, side = torch.rand(4, generator=random, dtype=torch.float64).tolist()
        start = int(at * (slack + 1)) if config.start == "random" else slack // 2
        crop = (y, x) if config.crop == "random" else (0.5, 0.5)
        flip = config.flip and side < 0.5
        return {
            "video": self.clip(index, start, crop, flip),
            "label": -1 if sample.label is None else sample.label,
            "key": sample.key,
            "start": start,
            "flip": flip,
        }

    def _interval(self, frames: int) -> int:
        """Interval used for a video of `frames` frames; 0 where the policy leaves it out."""
        config = self.config
        if frames >= config.span:
            return config.interval
        if config.short == "loop" and frames:
            return config.interval
        if config.short == "shrink_interval" and frames >= config.frames:
            return (frames - 1) // (config.frames - 1)
        return 0


def check_labels(where: str, labels: Any, classes: int) -> None:
    """Refuse (`ValueError`) labels outside `[0, classes)`; None and -1 mean unlabelled."""
    for label in labels:
        if label is not None and not -1 <= label < classes:
            raise ValueError(
                f"{where}: label {label}, but there are {classes} class names. Pack the data again."
            )
