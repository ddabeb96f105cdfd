"""Processes forked from the test's own, which need not import everything anew."""

import faulthandler
import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from accelerate.state import AcceleratorState

FORK = get_context("fork")
PATIENCE = 240
"""Seconds after which a process among several is thought to wait for ever."""


def begin(function: Callable[..., object], *arguments: Any) -> BaseProcess:
    """`function(*arguments)` in a process of its own."""
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def begin_ranks(count: int, function: Callable[..., object], *arguments: Any) -> list[BaseProcess]:
    """The same in `count` processes that find each other as those of `torchrun` do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    return [
        begin(_as_rank, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, function, arguments)
        for rank in range(count)
    ]


def run_ranks(count: int, function: Callable[..., object], *arguments: Any) -> None:
    """The same to the end; when one of them fails, those that would wait for it are killed."""
    ranks = begin_ranks(count, function, *arguments)
    running = {rank.sentinel: rank for rank in ranks}
    while running:
        for sentinel in wait([*running]):
            running.pop(sentinel).join()  # pyright: ignore[reportArgumentType]
        if any(rank.exitcode for rank in ranks):
            for rank in running.values():
                rank.kill()
    assert [rank.exitcode for rank in ranks] == [0] * count


def _as_rank(
    environment: dict[str, str], function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    os.environ |= environment
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process this one came from
    function(*arguments)
