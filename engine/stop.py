"""SIGTERM and SIGINT ask a run to save and end; every process ends at the same step."""

import os
import signal
from types import FrameType
from typing import Self

import torch
from torch import Tensor

LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
"""Whether torchrun or accelerate launch started this process."""
PARENT = os.getppid()


class StopSignal:
    """Within the context the two signals are noted instead of obeyed; a second SIGINT is obeyed.

    `accelerate launch` ends at SIGTERM without telling the process that it has started: where a
    launcher is gone, that counts as SIGTERM.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def noted(self) -> dict[str, Tensor]:
        """What this process was sent, to be averaged over all processes."""
        if LAUNCHED and os.getppid() != PARENT:
            self.number = signal.SIGTERM
        numbers = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
        return {name: torch.tensor(float(self.number == n)) for name, n in numbers.items()}

    @staticmethod
    def reduced(means: dict[str, float]) -> int:
        """The signal that any process was sent, 0 for none, from the means of `noted`."""
        names = [name for name in ("SIGTERM", "SIGINT") if means[name] > 0]
        return int(signal.Signals[names[0]]) if names else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.number = number
