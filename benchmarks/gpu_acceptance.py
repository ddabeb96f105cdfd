"""Everything that only a GPU can show, in one command and about ten minutes: one H100, no data set.

    python -m benchmarks.gpu_acceptance --out gpu.json

Each check has limits of its own and is recorded even if another failed. Without a GPU the same
checks run tiny, to keep the command itself working; those that need CUDA are recorded as skipped.
Exit code 1 if a check failed or missed a limit.
"""

import json
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt

from benchmarks.gpu_checks import CHECKS, Check
from benchmarks.gpu_models import Machine
from common.cli import main
from common.config import Config
from common.files import write_json
from common.machine import devices, system


@dataclass(frozen=True, kw_only=True)
class GPUAcceptance(Config):
    """Check and time everything on the device at hand; writes one JSON file."""

    out: Path
    """JSON file with every check, rewritten after each."""
    only: list[str] | None = None
    """Names of checks; null: all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cpu runs all of it tiny."""
    seconds: Annotated[float, Gt(0)] = 120.0
    """Longest that one check may take."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.only or ()) - set(CHECKS):
            raise ValueError(f"only: no check {', '.join(unknown)}: use {', '.join(CHECKS)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda, but torch finds no CUDA device: use auto or cpu")


def run(config: GPUAcceptance) -> None:
    """Run the checks one after the other; a failed one is recorded and the next begins."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    kind = found if config.device == "auto" else config.device
    machine = Machine(torch.device(kind), config.out.absolute().parent / "gpu_acceptance")
    about = {"tiny": machine.is_tiny, "device": kind, "found": [*system(), *devices()]}
    result: dict[str, Any] = {"machine": about, "checks": {}}
    for name, check in CHECKS.items():
        if config.only is not None and name not in config.only:
            continue
        since = time.perf_counter()
        record = _attempt(check, machine, config.seconds)
        record["seconds"] = round(time.perf_counter() - since, 2)
        result["checks"][name] = record
        write_json(config.out, result)
        print(f"{record['state']:8} {name} ({record['seconds']} s) {_short(record)}", flush=True)
    states = [record["state"] for record in result["checks"].values()]
    print(", ".join(f"{states.count(s)} {s}" for s in ("passed", "failed", "missed", "skipped")))
    sys.exit("failed" in states or "missed" in states)


def _attempt(check: Check, machine: Machine, seconds: float) -> dict[str, Any]:
    """State, values and limits of one check, whatever it raises."""
    if check.needs_cuda and machine.is_tiny:
        return {"state": "skipped", "reason": "needs CUDA"}
    torch.manual_seed(0)
    try:
        with _time_limit(seconds):
            values = check.run(machine)
    except Exception as error:  # noqa: BLE001 - any failure is recorded; the others still count
        frames = traceback.format_exception(error)[-3:]
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}", "trace": frames}
    finally:
        if not machine.is_tiny:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    limits = {} if machine.is_tiny else check.limits
    missed = [f"{k}={values[k]:.4g}, at most {limit:.4g}" for k, limit in limits.items()
              if not values[k] <= limit]  # fmt: skip
    state = "missed" if missed else "passed"
    return {"state": state, "missed": missed, "limits": limits, "values": values}


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def expire(number: int, frame: Any) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _short(record: dict[str, Any]) -> str:
    if "values" not in record:
        return record["reason"]
    texts = [f"{k}={v:.4g}" for k, v in record["values"].items() if isinstance(v, int | float)]
    return "; ".join([*record["missed"], json.dumps(", ".join(texts))])


if __name__ == "__main__":
    main(GPUAcceptance, run)
