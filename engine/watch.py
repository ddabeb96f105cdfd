"""What people watch of a run: time of a step, means between log lines, pictures."""

import time
from collections import defaultdict
from itertools import pairwise

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import UInt8


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


def show_pictures(
    accelerator: Accelerator, name: str, pictures: UInt8[np.ndarray, "n h w 3"], step: int
) -> None:
    """Give pictures to TensorBoard and to whatever else the run is logged to."""
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({name: pictures}, step=step, **layout)  # type: ignore[attr-defined]


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
