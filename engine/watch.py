"""What people watch of a run: time and memory of a step, means between log lines, pictures."""

import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import UInt8

MEGABYTE = 1e6


class Stopwatch:
    """Seconds by part of a step.

    On an accelerator its own clock is read (events on its stream), so that nothing waits for it
    before the end of the step.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Begin a step; what came before belongs to none."""
        self._marks: list[tuple[str, float | torch.Event]] = [("", self._now())]

    def mark(self, part: str) -> None:
        """The time since the last mark was spent on `part`."""
        self._marks.append((part, self._now()))

    def lap(self) -> dict[str, float]:
        """Seconds by part since `restart`, which begins anew."""
        marks, last = self._marks, self._marks[-1][1]
        if isinstance(last, torch.Event):
            last.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in pairwise(marks):
            if isinstance(before, torch.Event):
                seconds[part] += before.elapsed_time(after) / 1000  # type: ignore[arg-type]
            else:
                seconds[part] += after - before  # type: ignore[operator]
        self.restart()
        return dict(seconds)

    def _now(self) -> float | torch.Event:
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event


class Timing:
    """Seconds by part of long work, on the clock of the wall."""

    def __init__(self, *parts: str):
        self.seconds = dict.fromkeys(parts, 0.0)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count the time in the context as `part`."""
        since = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - since

    @property
    def shares(self) -> dict[str, float]:
        """Each part's fraction of the whole; 0 where nothing was done."""
        total = sum(self.seconds.values()) or 1.0
        return {part: seconds / total for part, seconds in self.seconds.items()}


def show_pictures(
    accelerator: Accelerator, name: str, pictures: UInt8[np.ndarray, "n h w 3"], step: int
) -> None:
    """Give pictures to TensorBoard and to whatever else the run is logged to."""
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({name: pictures}, step=step, **layout)  # type: ignore[attr-defined]


def peak_memory(device: torch.device) -> float:
    """Highest memory so far, MB: of tensors on an accelerator, of the whole process on a CPU."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE
    return torch.accelerator.max_memory_allocated(device) / MEGABYTE


class Means:
    """Running means of named values; a name counts only where it occurs."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, values: dict[str, float]) -> None:
        """Take in one step's values."""
        for name, value in values.items():
            self._sums[name] += value
            self._counts[name] += 1

    def flush(self) -> dict[str, float]:
        """The means since the last flush."""
        means = {name: self._sums[name] / count for name, count in self._counts.items()}
        self.__init__()
        return means
