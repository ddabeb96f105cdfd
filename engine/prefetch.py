"""The next batch is loaded while a step runs, and goes to the device without a wait; results come
back likewise."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from engine.losses import Batch
from engine.optimization import count_clips

BatchSource = Callable[[int], Iterator[Batch]]
"""Gives this process's batches from a step on. Their shapes may differ from step to step; all
processes get equally many clips at a step."""
Draw = Callable[[Batch, int, int, range], Batch]
"""What is drawn at random for a batch, from the seed, the step and its clips' places in the global
batch."""


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
