"""Processes that pack records ahead of the one that writes shards, and that cannot outlive it."""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self

from data.shards.pack_video import Failed, Packed, Progress, ShardConfig
from data.shards.parallel import process_pool
from data.video.decode import TIME_LIMIT
from data.video.video_record import VideoRecord

GRACE = 60.0
"""Seconds beyond the time limit after which a worker that is stuck ends itself."""

Work = Callable[[VideoRecord, ShardConfig, float], Packed | Failed]
"""What workers do with a record: `pack_record`, or only `probe_one` it."""


class Packer:
    """Packed records by number, worked out ahead by a pool of processes."""

    def __init__(
        self,
        work: Work,
        records: Sequence[VideoRecord],
        numbers: Sequence[int],
        config: ShardConfig,
        *,
        workers: int,
        time_limit: float = TIME_LIMIT,
    ) -> None:
        """Do `work` on the records with these numbers, which ascend; 0 workers: in this process."""
        self._records = records
        self._waiting = deque(numbers)
        self._options = (config, time_limit)
        self._work = work
        self._ahead = max(1, 2 * workers)
        self._results: dict[int, Future[Packed | Failed]] = {}
        self._pool = (
            process_pool(
                workers,
                preload=__name__,
                prepare=_watch_for_stuck_calls,
                arguments=(time_limit + GRACE,),
            )
            if workers
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def get(self, number: int) -> Packed | Failed:
        """The result for record `number`; they are asked for in order, but again costs nothing."""
        for passed in [key for key in self._results if key < number]:
            del self._results[passed]
        try:
            while self._waiting and (number not in self._results or not self._is_busy()):
                ahead = self._waiting.popleft()
                self._results[ahead] = self._submit(self._records[ahead])
            return self._results[number].result()
        except BrokenProcessPool:
            raise ValueError(
                f"a worker process died at or soon after video {self._records[number].id!r}: out "
                "of memory, or a file that makes the decoder crash or hang; such a file is named "
                "above. Use fewer workers or remove the file, then run again to go on."
            ) from None

    def _is_busy(self) -> bool:
        return len(self._results) >= self._ahead

    def _submit(self, record: VideoRecord) -> "Future[Packed | Failed]":
        if self._pool is not None:
            return self._pool.submit(_watched, self._work, record, *self._options)
        done: Future[Packed | Failed] = Future()
        done.set_result(self._work(record, *self._options))
        return done


def _watch_for_stuck_calls(patience: float) -> None:
    threading.Thread(target=_end_if_stuck, args=(patience,), daemon=True).start()


def _watched(
    work: Work, record: VideoRecord, config: ShardConfig, time_limit: float
) -> Packed | Failed:
    Progress.since, Progress.path = time.monotonic(), record.path
    try:
        return work(record, config, time_limit)
    finally:
        Progress.path = None


def _end_if_stuck(patience: float) -> None:
    """A call into the decoder or the file system that never returns leaves no other way out."""
    while True:
        time.sleep(1)
        path = Progress.path
        if path is not None and time.monotonic() - Progress.since > patience:
            sys.stderr.write(f"{path}: no frame for {patience:g} s; this worker ends itself\n")
            os._exit(1)
