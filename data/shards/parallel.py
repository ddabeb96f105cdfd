"""Work on many files at once in processes that share nothing with this one."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


def parallel(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Result]:
    """Yield `function(task)` in the order of the tasks, worked out by `workers` processes.

    Args:
        function: can be pickled, like its tasks and results: a function of a module, or a
            `functools.partial` of one.
        workers: 0 works in this process.

    Raises:
        ValueError: a process died.
    """
    if workers == 0 or len(tasks) < 2:
        yield from map(function, tasks)
        return
    module = getattr(function, "func", function).__module__
    with process_pool(min(workers, len(tasks)), preload=module) as pool:
        try:
            yield from pool.map(function, tasks)
        except BrokenProcessPool:
            raise ValueError(
                "a worker process died, probably out of memory. Use fewer workers, then run again."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def process_pool(
    workers: int, *, preload: str, prepare: Callable[..., None] | None = None, arguments: tuple = ()
) -> ProcessPoolExecutor:
    """Processes with one torch thread each that end with this one, however it ends.

    They are forked from one that has imported the module `preload` and started no threads, and
    call `prepare(*arguments)` first.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, preload])
    return ProcessPoolExecutor(workers, context, initializer=_start, initargs=(prepare, *arguments))


def _start(prepare: Callable[..., None] | None, *arguments: Any) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _end_with_parent() -> None:
    """A parent that was killed cannot end its pool: workers would wait for it for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
