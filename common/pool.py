"""Work on many files in processes that share nothing with this one and cannot outlive it."""

import faulthandler
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing import get_context, parent_process
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

from common.machine import one_thread

Task = TypeVar("Task")
Result = TypeVar("Result")

STUCK = 1
"""Exit status of a process that ended itself because its task was stuck."""

_patience: float | None = None
"""In a worker: seconds that a task may take from one `report_progress` to the next."""
_nowhere = os.open(os.devnull, os.O_WRONLY)


def map_ordered(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    *,
    patience: float | None = None,
    on_death: Callable[[Task, int], Result] | None = None,
) -> Generator[Result, None, None]:
    """Yield `function(task)` in the order of the tasks, a few of them worked out ahead.

    A task whose process dies takes no other with it: another process takes its place.

    Args:
        function: can be pickled, like its tasks and results: a function of a module, or a
            `functools.partial` of one.
        workers: processes with one torch thread each; 0 works in this process.
        patience: seconds that a task may take from one `report_progress` to the next before its
            process ends itself, even out of a call that never returns. Not in this process.
        on_death: makes the result of a task whose process died of it, from the exit status
            (negative: the signal); by default that ends the work.

    Raises:
        ValueError: a process died, and `on_death` is not given.
    """
    if workers == 0 or not tasks:
        yield from map(function, tasks)
        return
    # Fork workers from a server that has imported the module and started no threads
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, getattr(function, "func", function).__module__])
    workers = min(workers, len(tasks))
    pool = ProcessPool(workers, initializer=_begin, initargs=(patience,), context=context)
    waiting, running = deque(tasks), deque()
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                task = waiting.popleft()
                running.append((task, pool.schedule(_watched, args=(function, task))))
            task, future = running.popleft()
            try:
                result = future.result()
            except ProcessExpired as error:
                if on_death is None:
                    raise ValueError(
                        f"a worker process died (exit status {error.exitcode}) at {task}, probably "
                        "out of memory. Use fewer workers, then run again."
                    ) from None
                result = on_death(task, error.exitcode)
            yield result
    finally:
        pool.stop()
        pool.join()


def report_progress() -> None:
    """Say that the task of this process gets on: the watch for stuck ones starts anew.

    The watch is a thread without Python, which a decoder that never returns cannot hold up.
    """
    if _patience is not None:
        faulthandler.dump_traceback_later(_patience, exit=True, file=_nowhere)


def _watched(function: Callable[[Task], Result], task: Task) -> Result:
    report_progress()
    try:
        return function(task)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _begin(patience: float | None) -> None:
    global _patience  # noqa: PLW0603  (of this worker process)
    _patience = patience
    one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its pool: workers would wait for it for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
