"""The next batch is loaded while a step runs, and goes to the device without a wait; results come
back likewise."""

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.machine import one_thread
from engine.losses import Batch
from engine.optimization import count_clips

RECEIVED = 2  # batches that are taken over from a loader's workers before they are asked for

BatchSource = Callable[[int], Iterator[Batch]]
"""Gives this process's batches from a step on. Their shapes may differ from step to step; all
processes get equally many clips at a step."""
Draw = Callable[[Batch, int, int, range], Batch]
"""What is drawn at random for a batch, from the seed, the step and its clips' places in the global
batch."""


def load_batches(dataset: Dataset, *, workers: int, **options: Any) -> Iterator[Any]:
    """The batches of a `DataLoader`, which takes `options`; no global random state is touched.

    Memory is pinned where CUDA is available.

    Python 3.12 deprecates forking a process that has threads, as every process with torch has. Here
    it is safe: the workers start no threads of torch's and do not touch CUDA.

    Args:
        workers: processes that load ahead, with one torch thread each; 0 loads in this process.
    """
    loader = DataLoader(
        dataset,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=one_thread,
        generator=torch.Generator(),  # else starting it draws from the global one
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        batches = iter(loader)
    yield from received(batches) if workers else batches


def received(batches: Iterator[Any]) -> Generator[Any, None, None]:
    """The same batches, `RECEIVED` of them drawn ahead by a thread; none may be None.

    The thread also frees them: unmapping a worker's memory may take longer than receiving it. Its
    errors are raised where the batch would have come, and it ends with the iterator.
    """

    def free_and_draw(given: list[Any]) -> Any:
        given.clear()
        return next(batches, None)

    thread = ThreadPoolExecutor(1)
    try:
        ready = deque(thread.submit(free_and_draw, []) for _ in range(RECEIVED))
        given = [ready.popleft().result()]
        while given[0] is not None:
            yield given[0]
            ready.append(thread.submit(free_and_draw, given))
            given = [ready.popleft().result()]
    finally:
        thread.shutdown(cancel_futures=True)


def with_draws(batches: BatchSource, draw: Draw, seed: int, rank: int) -> BatchSource:
    """The same batches with what `draw` adds, so that a step finds its noise on the device."""

    def source(first: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(first), start=first):
            count = count_clips(batch)
            positions = range(rank * count, (rank + 1) * count)
            yield {**batch, **draw(batch, seed, step, positions)}

    return source


def prefetch(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The same batches on the device, the next one drawn by a thread while one is used.

    With CUDA the thread also pins memory, so that the copies do not hold up the host. The thread's
    errors are raised where the batch would have come.
    """

    def draw() -> Batch | None:
        batch = next(batches, None)
        if batch is None or device.type != "cuda":
            return batch
        return {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()}

    batch = draw()  # here, so that a loader starts its workers in the main thread
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        while batch is not None:
            coming = thread.submit(draw)
            yield to_device(batch, device)
            del batch
            batch = coming.result()


class HostCopy:
    """A copy of a tensor on its way to the host, which waits for it only in `read`."""

    def __init__(self, value: Tensor):
        self._host = value.detach().to("cpu", non_blocking=True)  # from CUDA into pinned memory
        self._copied = None
        if value.device.type != "cpu":
            self._copied = torch.Event(value.device)
            self._copied.record()

    def read(self) -> Tensor:
        """The copy, in any thread."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
