"""The batches of one process, in their order, for any data set of `(epoch, index)` items."""

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, default_collate

from data.clips.batch_order import GlobalBatches, batch_order
from data.clips.buckets import BucketClips, BucketOrder
from engine.config import TrainConfig

AHEAD = 4  # batches that each worker loads ahead
RECEIVED = 2  # batches that are taken over from the workers before they are asked for


def batches(
    dataset: Dataset,
    order: GlobalBatches | BucketOrder,
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
    One set of workers serves all steps, epochs included. Memory is pinned where CUDA is available.

    Args:
        dataset: `ClipDataset`, `LatentDataset` or the like; `BucketClips` with a `BucketOrder`.
        workers: processes that load ahead, with one torch thread each; 0 loads in this process.

    Returns:
        Items stacked by `default_collate`: tensors with a new first axis, lists of strings; and
        `bad_samples`, int64 (b,): how many unreadable samples each item stands in for.

    Raises:
        ValueError: at once, if `world_size` does not divide the global batch or a number is
            negative; later, if a `ClipDataset` meets more unreadable samples than it allows.
    """
    order.check_world_size(world_size)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} must be in [0, {world_size})")
    if start_step < 0 or workers < 0:
        raise ValueError(f"start_step={start_step} and workers={workers} must not be negative")
    loader = DataLoader(
        dataset,
        batch_sampler=_Steps(order, range(start_step, stop_step), rank, world_size),
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=one_thread,
        generator=torch.Generator(),  # else starting it draws from the global one
    )
    return _report_bad(loader, getattr(dataset, "unreadable", None))


def start(loader: DataLoader) -> Iterator[Any]:
    """`iter(loader)` for a loader whose workers run `one_thread`.

    Batches are taken over from the workers by a thread, so that the caller does not wait for that.

    Python 3.12 deprecates forking a process that has threads, as every process with torch has. Here
    it is safe: the workers start no threads of torch's and do not touch CUDA.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        batches = iter(loader)
    return received(batches) if loader.num_workers else batches


def received(batches: Iterator[Any]) -> Generator[Any, None, None]:
    """The same batches, `RECEIVED` of them drawn ahead by a thread; none may be None.

    The thread also frees them: unmapping a worker's memory may take longer than receiving it. Its
    errors are raised where the batch would have come, and it ends with the iterator.
    """
    thread = ThreadPoolExecutor(1)
    try:
        ready = deque(thread.submit(next, batches, None) for _ in range(RECEIVED))
        given = [ready.popleft().result()]
        while given[0] is not None:
            yield given[0]
            ready.append(thread.submit(_free_and_draw, given, batches))
            given = [ready.popleft().result()]
    finally:
        thread.shutdown(cancel_futures=True)


def _free_and_draw(given: list[Any], batches: Iterator[Any]) -> Any:
    given.clear()
    return next(batches, None)


def training_batches(
    dataset: Any, config: TrainConfig, accelerator: Accelerator
) -> Callable[[int], Iterator[dict[str, Any]]]:
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


def one_thread(_: int) -> None:
    """`worker_init_fn`: workers scale by their number, not by threads that compete for cores."""
    torch.set_num_threads(1)


class _Steps:
    """A batch sampler: one list of items per step."""

    def __init__(
        self, order: GlobalBatches | BucketOrder, steps: range, rank: int, world_size: int
    ):
        self.order = order
        self.steps = steps
        self.part = (rank, world_size)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        for step in self.steps:
            yield list(self.order.local_batch(step, *self.part))


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items; of what each says in `bad`, count and list the entries."""
    bad = [item.pop("bad", ()) for item in items]
    counts = torch.tensor([len(entries) for entries in bad])
    return {**default_collate(items), "bad_samples": counts, "bad": list(chain(*bad))}


def _report_bad(loader: DataLoader, unreadable: Any) -> Iterator[dict[str, Any]]:
    """Take the workers' unreadable samples out of the batches and count them in this process."""
    for batch in start(loader):
        for key, reason in batch.pop("bad"):
            unreadable.add(key, reason)
        yield batch
        del batch  # `received` frees it
