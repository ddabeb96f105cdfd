"""Memory and time of work, in bytes and seconds: one unit and one way for all."""

import resource
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIGABYTE = 1e9
"""Bytes of a GB in messages, logs and tables; a MB is a thousandth."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")


def peak_memory_bytes(device: torch.device | str = "cpu") -> int:
    """Highest memory since `reset_peak_memory`, or of the whole run where the system forbids that.

    On an accelerator, what PyTorch had allocated there; on a CPU, the memory of the process.
    """
    if torch.device(device).type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return max_rss_bytes(resource.getrusage(resource.RUSAGE_SELF))


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Forget the peak so far."""
    if torch.device(device).type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        try:
            CLEAR.write_text("5")  # the process's high-water mark, see man 5 proc
        except OSError:
            return  # some sandboxes forbid it


def cpu_seconds() -> float:
    """Processor time of this process so far, and of those that it started and that have ended."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in times)


def max_rss_bytes(usage: resource.struct_rusage) -> int:
    """Highest memory of a process, from its resource usage: kilobytes except on macOS."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: on a CUDA device, else in the host's memory.

    On CUDA that is what the driver has free and what PyTorch holds but does not use; on the host
    what the operating system calls available, within the limit of the container.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available = psutil.virtual_memory().available
    limit = _container_memory()
    return available if limit is None else min(available, limit)


def _container_memory() -> int | None:
    """Bytes left within the memory limit of the control group (Linux); None without one."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = (CGROUP / "memory.current").read_text()
        statistics = (CGROUP / "memory.stat").read_text()
    except OSError:
        return None
    if limit == "max":
        return None
    lines = dict(line.split() for line in statistics.splitlines())
    return int(limit) - int(used) + int(lines.get("inactive_file", 0))  # file cache can go


class LiveMemory(TorchDispatchMode):
    """Within, counts the bytes of new tensors while they are in use (`now`), and their `peak`.

    Exact, and the same on every machine. What existed before does not count, a view does not count
    again, and what a kernel needs inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if all(returned.alias_info is None for returned in func._schema.returns):
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class Timing:
    """Seconds by part of long work, on the wall clock."""

    def __init__(self, *parts: str):
        self.seconds = dict.fromkeys(parts, 0.0)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Count the time in the context as `part`."""
        since = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - since

    @property
    def shares(self) -> dict[str, float]:
        """Each part's fraction of the whole; 0 where nothing was done."""
        total = sum(self.seconds.values()) or 1.0
        return {part: seconds / total for part, seconds in self.seconds.items()}
