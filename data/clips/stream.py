"""Clips from shards that are read from start to end: endless, without an index, not resumable.

For data behind pipes or too large to index. `stream_batches` gives what
`data.clips.batches.batches` gives of a `ClipDataset`, except that a resumed run sees other samples
than a straight one would have, and that nothing guarantees that each sample is seen once an epoch.
Where the shards can be indexed (`scripts/index_shards.py`), do that instead.
"""

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from accelerate import Accelerator
from annotated_types import Ge, Le
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline
from webdataset.tariterators import tarfile_to_samples

from common.config import MAY_CHANGE
from common.files import expand_names, sampled_sha256
from common.seeding import fold, generator
from data.clips.options import AugmentedClipOptions, UnreadableVideos, collate, report_unreadable
from data.shards.tars import find_label, video_extension
from data.video.container import DecodeError
from data.video.probe import probe
from engine.config import TrainConfig
from engine.prefetch import load_batches

log = logging.getLogger(__name__)

PATIENCE = 64  # samples in a row that give no clip before a stream is given up
SEEN_AT_LEAST = 1000  # smallest denominator of the fraction of unreadable entries


@dataclass(frozen=True, kw_only=True)
class StreamConfig(AugmentedClipOptions):
    """Clips from webdataset shards in streaming mode."""

    urls: Annotated[tuple[str, ...], MAY_CHANGE]
    """Shards: paths, addresses or `pipe:` and a command that writes a tar; {000..127} stands for
    numbers. A pipe's command is run by the shell."""
    shuffle: Annotated[int, Ge(1), Le(1_000_000)] = 256
    """Videos held by each worker, as stored, to be drawn from at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.urls:
            raise ValueError("urls is empty: name at least one shard")
        _ = self.shards  # refuses invalid patterns

    @property
    def shards(self) -> list[str]:
        """Every shard of `urls`."""
        return [url for pattern in self.urls for url in expand_names(pattern)]

    def content(self) -> str:
        """Hash of what is streamed: of local shards by size and samples of their bytes, as they
        may be too large to be read for it; of others by their address or command alone."""
        digest = sha256()
        for url in self.shards:
            path = Path(url.removeprefix("file:"))
            digest.update(f"\0{sampled_sha256(path) if path.is_file() else url}".encode())
        return digest.hexdigest()


def stream_batches(
    config: StreamConfig,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Endless batches of process `rank`; never end early in one process, never hang the others.

    In each round the shards are put into a new order, equal in all processes, and dealt out to the
    workers of all processes, so no shard is read twice in a round. The same arguments give the same
    batches; other numbers of processes or workers give others. Do not pass the result to
    `Accelerator.prepare`, which would split it again.

    Args:
        batch_size: clips per batch of this process.
        workers: processes that load ahead; 0 loads in this process.

    Returns:
        `video` uint8 `b c t h w`, for `common.pixels.to_float`; `label`, -1 without one; `key`, a
        list of strings; `unreadable_clips`, int64 (b,): how many were passed over since the last
        clip.
        Labels are found as `data.shards.tars.find_label` does; they must be numbers here.

    Raises:
        ValueError: at once, for an invalid number; later, for more unreadable entries and shards
            than `max_error_fraction` of those seen (of 1000 at least), or where many entries in a
            row give no clip.
    """
    if batch_size < 1 or workers < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"batch_size={batch_size} must be at least 1, workers={workers} not negative, "
            f"rank={rank} in [0, {world_size})"
        )
    stream = _Stream(config, rank, world_size, seed)
    loaded = load_batches(stream, workers=workers, batch_size=batch_size, collate_fn=_collate)
    return _counted(loaded, UnreadableVideos(config.max_error_fraction, SEEN_AT_LEAST))


def training_stream(
    config: StreamConfig, train: TrainConfig, accelerator: Accelerator
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """This process's batches of a training run from any step on, for `engine.train.Trainer`.

    A run that goes on from a checkpoint draws a stream of its own, which is logged: what a straight
    run would have seen next is not known.

    Raises:
        ValueError: the processes do not divide the global batch.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    batch_size = train.local_batch_size(world)

    def source(step: int) -> Iterator[dict[str, Any]]:
        if step:
            log.warning(
                "step %d: streamed data cannot be resumed exactly: the stream begins anew, in "
                "another order than an uninterrupted run would see",
                step,
            )
        seed = fold(train.seed, "stream", step)
        return stream_batches(config, batch_size, rank, world, train.workers, seed)

    return source


class _Stream(IterableDataset):
    """The clips of one worker."""

    def __init__(self, config: StreamConfig, rank: int, world_size: int, seed: int):
        self.config = config
        self.urls = config.shards
        self.part = (rank, world_size)
        self.seed = seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info, (rank, world_size) = get_worker_info(), self.part
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        number, streams = rank * workers + worker, world_size * workers
        unreadable: list[tuple[str, str]] = []

        def note(error: Exception) -> bool:
            """webdataset's handler: go on with the next member or shard."""
            text = error.strerror if isinstance(error, OSError) else error.args and error.args[0]
            unreadable.append((_place(error), f"cannot be read ({text or error})"))
            return len(unreadable) < PATIENCE

        order = random.Random(fold(self.seed, "stream shuffle", number))
        samples = DataPipeline(
            lambda: ({"url": url} for url in self._shards(number, streams)),
            tarfile_to_samples(handler=note),
            shuffle(self.config.shuffle, initial=self.config.shuffle // 2, rng=order),
        )
        skipped = 0
        for position, sample in enumerate(samples):
            chosen = generator(self.seed, "stream clip", number, position)
            item = self._item(sample, chosen, unreadable)
            skipped = 0 if item else skipped + 1
            if item:
                yield {**item, "unreadable": unreadable.copy()}
                unreadable.clear()
            elif skipped >= PATIENCE:
                break
        reason = "the last: {}: {}".format(*unreadable[-1]) if unreadable else "they are too short"
        yield {"end": f"{self.config.urls[0]}: no clip from {PATIENCE} samples in a row; {reason}"}

    def _shards(self, number: int, streams: int) -> Iterator[str]:
        """Every `streams`-th shard of an endless row of permutations, from the `number`-th on."""
        for position in count(number, streams):
            turn, place = divmod(position, len(self.urls))
            order = np.random.default_rng(fold(self.seed, "stream shards", turn))
            yield self.urls[order.permutation(len(self.urls))[place]]

    def _item(
        self, sample: dict[str, Any], chosen: torch.Generator, unreadable: list[tuple[str, str]]
    ) -> dict[str, Any] | None:
        """A clip of a sample; None, and a note in `unreadable`, where it gives none."""
        key, config = sample["__key__"], self.config
        members = {name: data for name, data in sample.items() if not name.startswith("__")}
        extension = video_extension(members)
        try:
            if extension is None:
                raise ValueError(f"members {sorted(members)}, none of them a video")
            label, _ = find_label(members)
            if isinstance(label, str):
                raise ValueError(f"label {label!r} is a name; index the shards to number the names")
            video = members[extension]
            frames = probe(video, strict=config.strict_decoding).frames
            stride = int(config.strides(np.array([frames]))[0])
            if not stride:
                return None
            slack = config.slack(frames, stride)
            clip = config.clip(video, frames, stride, config.choose(slack, chosen))
        except (DecodeError, ValueError) as error:
            unreadable.append((key, str(error)))
            return None
        return {"video": clip, "label": -1 if label is None else label, "key": key}


def _place(error: Exception) -> str:
    """The shard that webdataset has added to an error."""
    named = [part for part in error.args[1:] if isinstance(part, str)]
    return named[-1] if named else "a shard"


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    end = next((item["end"] for item in items if "end" in item), None)
    if end is not None:
        return {"end": end, "unreadable": []}
    return collate(items)


def _counted(
    batches: Iterator[dict[str, Any]], unreadable: UnreadableVideos
) -> Iterator[dict[str, Any]]:
    """The same batches up to the end, an error; the limit of unreadable ones is of those seen."""
    seen = 0
    for batch in report_unreadable(batches, unreadable):
        if "end" in batch:
            raise ValueError(batch["end"])
        seen += len(batch["key"])
        unreadable.total = max(SEEN_AT_LEAST, seen)
        yield batch
        del batch  # `received` frees it
