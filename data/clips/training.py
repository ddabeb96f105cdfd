"""Where the clips of a training run come from: packed videos, of one size or of many; a stream."""

from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from common.config import Config
from common.output_folder import Input
from data.clips.batch_order import Mixture, Source, source_names
from data.clips.buckets import Bucket, BucketClips, BucketConfig
from data.clips.dataset import ClipConfig, ClipDataset
from data.clips.loader import training_batches
from data.clips.options import Size, UnreadableVideos
from data.clips.stream import StreamConfig, training_stream
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
            raise ValueError("set either data or stream, where training clips come from; null: not")
        if self.buckets is not None and self.stream is not None:
            raise ValueError("buckets need data, whose videos' sizes are known: a stream has one")
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
