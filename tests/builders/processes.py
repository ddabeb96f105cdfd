"""Processes from a server that has imported all that commands need, and has run nothing.

A process forked from the test's own would inherit what earlier tests left behind: threads that are
gone, locks that they held, counters.
"""

import faulthandler
import os
import socket
import warnings
from collections.abc import Callable
from multiprocessing import forkserver, get_context, set_start_method
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

SERVER = get_context("forkserver")
PRELOADED = ["tests.builders.command_cases", "torch.utils.tensorboard", "jinja2"]
"""What commands import, some of it when they run."""
PATIENCE = 240
"""Seconds after which a process is thought to wait for ever."""


def start_server() -> None:
    """Before any test starts one that has not imported what commands need."""
    SERVER.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def begin(function: Callable[..., object], *arguments: Any, **environment: str) -> BaseProcess:
    """`function(*arguments)` in a process of its own, with more variables of the environment."""
    variables = {**os.environ, **environment}
    process = SERVER.Process(target=_run, args=(variables, warnings.filters, function, arguments))
    process.start()
    return process


def begin_ranks(
    count: int, function: Callable[..., object], *arguments: Any, **environment: str
) -> list[BaseProcess]:
    """The same in `count` processes that find each other as those of `torchrun` do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    shared |= environment
    return [
        begin(function, *arguments, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(count)
    ]


def run_ranks(
    count: int, function: Callable[..., object], *arguments: Any, **environment: str
) -> None:
    """The same to the end; when one of them fails, those that would wait for it are killed."""
    ranks = begin_ranks(count, function, *arguments, **environment)
    running = {rank.sentinel: rank for rank in ranks}
    while running:
        for sentinel in wait([*running]):
            running.pop(sentinel).join()  # pyright: ignore[reportArgumentType]
        if any(rank.exitcode for rank in ranks):
            for rank in running.values():
                rank.kill()
    assert [rank.exitcode for rank in ranks] == [0] * count


def _run(
    environment: dict[str, str],
    filters: list[Any],
    function: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # pyright: ignore[reportAttributeAccessIssue]
    set_start_method(None, force=True)  # a launched command forks its workers
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    function(*arguments)
