"""SIGTERM and SIGINT ask a run to save and end; every process ends at the same step."""

import signal
from types import FrameType, TracebackType
from typing import Self

import torch
from accelerate import Accelerator


class StopSignal:
    """Within the context the two signals are noted instead of obeyed; a second SIGINT is obeyed."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def agreed(self) -> int:
        """The signal that any process was sent, 0 for none; all processes get the same answer."""
        if self.accelerator.num_processes == 1:
            return self.number
        noted = torch.tensor([self.number], device=self.accelerator.device)
        return int(self.accelerator.gather(noted).max())  # type: ignore[union-attr]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.number = number
