"""What people watch of a run: time of a step, means between log lines, pictures."""

import time
from collections import defaultdict
from itertools import pairwise

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from torch import Tensor

from engine.prefetch import HostCopy


class Stopwatch:
    """Seconds by part of a step.

    On an accelerator its own clock is read (events on its stream), so that nothing waits for it
    before the times are read.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._finished: list[list[tuple[str, float | torch.Event]]] = []
        self.restart()

    def restart(self) -> None:
        """Begin a step; what came before belongs to none."""
        self._marks: list[tuple[str, float | torch.Event]] = [("", self._now())]

    def mark(self, part: str) -> None:
        """The time since the last mark was spent on `part`."""
        self._marks.append((part, self._now()))

    def finish(self) -> None:
        """The step is over; its times wait to be read."""
        self._finished.append(self._marks)
        self.restart()

    def read(self) -> list[dict[str, float]]:
        """Seconds by part of each step that was finished and not yet read."""
        laps, self._finished = self._finished, []
        return [self._seconds(marks) for marks in laps]

    def _seconds(self, marks: list[tuple[str, float | torch.Event]]) -> dict[str, float]:
        last = marks[-1][1]
        if isinstance(last, torch.Event):
            last.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in pairwise(marks):
            if isinstance(before, torch.Event):
                seconds[part] += before.elapsed_time(after) / 1000  # type: ignore[arg-type]
            else:
                seconds[part] += after - before  # type: ignore[operator]
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


class ReducedValues:
    """Means over the processes of a step's scalars, on their way from the device to the host.

    One reduction and one copy carry them all, and the host waits for them only in `read`.
    """

    def __init__(
        self,
        step: int,
        checked: dict[str, Tensor],
        counts: dict[str, Tensor],
        accelerator: Accelerator,
    ):
        """`checked`: what must be finite in step number `step`; `counts`: what else is told."""
        self.step = step
        self._names, self._checked = [*checked, *counts], len(checked)
        values = [*checked.values(), *counts.values()]
        row = [v.detach().float().to(accelerator.device, non_blocking=True) for v in values]
        means = accelerator.reduce(torch.stack(row), "mean")
        assert isinstance(means, Tensor)
        self._row = means
        self._copy = HostCopy(means)

    def not_finite(self) -> Tensor:
        """1 if a checked value is not finite, else 0: a scalar on the device."""
        return 1 - self._row[: self._checked].isfinite().all().float()

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """The checked values and the counts; the same numbers in each process."""
        pairs = list(zip(self._names, self._copy.read().tolist(), strict=True))
        return dict(pairs[: self._checked]), dict(pairs[self._checked :])


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
