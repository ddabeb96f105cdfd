"""What benchmarks do alike: times taken in turns, operations, memory, weights that all count."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from common.measure import LiveMemory, peak_memory_bytes, reset_peak_memory

Call = Callable[[], object]
Module = TypeVar("Module", bound=nn.Module)


def clock(device: torch.device | str = "cpu") -> float:
    """Seconds: on a CPU of the processor, so that other work disturbs less; on a GPU on the wall,
    once it has done all that it was given."""
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_in_turns(
    calls: Sequence[Call], repeats: int, now: Callable[[], float] = clock
) -> list[list[float]]:
    """Seconds of every run of each call; they take turns, so that all meet the same load.

    Args:
        now: tells the time.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, seconds, strict=True):
            since = now()
            call()
            taken.append(now() - since)
    return seconds


def count_flop(call: Call, learns: bool) -> int:
    """Operations of convolutions and matrix products, as they run: two per multiply-accumulate.

    A training step's are three times those of its forward pass, which is all that is counted.
    """
    sdpa = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch does not count it
    mapping = {sdpa: lambda q, k, v, *args, **kwargs: sdpa_flop_count(q, k, v)}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
        call()
    return (3 if learns else 1) * counter.get_total_flops()


def peak_bytes(call: Call, device: torch.device | str) -> int:
    """Bytes of all tensors at most while it runs; on a GPU with the weights."""
    if torch.device(device).type == "cpu":
        with LiveMemory() as memory:
            call()
        return memory.peak
    reset_peak_memory(device)
    call()
    torch.cuda.synchronize(device)
    return peak_memory_bytes(device)


def matmul_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products."""
    size = 1024 if torch.device(device).type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    (seconds,) = seconds_in_turns([lambda: a @ a], 8, lambda: clock(device))
    return 2 * size**3 / min(seconds)


def scrambled(model: Module) -> Module:
    """Matrices of zeros get random values, so that no path of a fresh model counts for nothing."""
    for parameter in model.parameters():
        if not parameter.any() and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
    return model
