"""Decides after each step's backward passes whether its gradients may change the weights."""

import logging
import math
from collections import deque
from collections.abc import Collection
from statistics import median
from typing import Any

log = logging.getLogger(__name__)

WINDOW = 100
"""Steps whose gradient norms a spike is compared with."""
ENOUGH = 20
"""Norms needed before anything counts as a spike."""


class Guard:
    """Counts and refuses steps whose loss or gradient is not finite, and, if asked to, spikes.

    It sees values that all processes agree on, so all decide alike. A refused step still counts:
    the step counter, the data and the schedules go on.
    """

    def __init__(self, max_skipped_steps: int, spike_factor: float | None = None):
        self.max_skipped_steps = max_skipped_steps
        self.spike_factor = spike_factor
        self.skipped = 0
        self.in_a_row = 0
        self.norms: dict[str, deque[float]] = {}

    def accepts(self, step: int, values: dict[str, float], norms: Collection[str]) -> bool:
        """Whether step number `step` may change the weights.

        Args:
            values: all losses and gradient norms of the step.
            norms: which of them are gradient norms.
        Raises:
            ValueError: it is the `max_skipped_steps`-th step in a row that is not finite.
        """
        bad = [f"{name} is {v}" for name, v in values.items() if not math.isfinite(v)]
        if bad:
            self.skipped += 1
            self.in_a_row += 1
            log.warning("step %d skipped: %s", step, ", ".join(bad))
            if self.in_a_row >= self.max_skipped_steps:
                raise ValueError(
                    f"non-finite loss or gradients in {self.in_a_row} steps in a row, the last is "
                    f"step {step} ({', '.join(bad)}). The last checkpoint is older: lower the "
                    "learning rate or max_grad_norm and rerun in another folder."
                )
            return False
        self.in_a_row = 0
        spikes = [self._spike(name, values[name]) for name in norms]  # all are recorded
        if not any(spikes):
            return True
        self.skipped += 1
        log.warning("step %d skipped: %s", step, ", ".join(filter(None, spikes)))
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, for JSON."""
        norms = {name: list(values) for name, values in self.norms.items()}
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "norms": norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.norms = {name: deque(values, WINDOW) for name, values in state["norms"].items()}

    def _spike(self, name: str, norm: float) -> str:
        """What is wrong with this norm, or nothing. It joins the window either way, so a level
        that has changed for good is accepted in the end."""
        if self.spike_factor is None:
            return ""
        before = self.norms.setdefault(name, deque(maxlen=WINDOW))
        usual = median(before) if len(before) >= ENOUGH else math.inf
        before.append(norm)
        if norm <= self.spike_factor * usual:
            return ""
        return f"{name} is {norm:.4g}, {norm / usual:.3g} times the usual"
