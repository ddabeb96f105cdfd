"""What encoding and decoding cost here: time and memory, with the device named."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from common.measure import peak_memory_bytes, reset_peak_memory


@torch.inference_mode()
def measure_cost(
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    video: Float[Tensor, "1 c t h w"],
    *,
    repeats: int = 5,
    warmup: int = 1,
) -> dict[str, Any]:
    """Median times and peak memory of encoding a video and of decoding its latent.

    Args:
        encode, decode: on the device of `video`.
        video: what is encoded.
        repeats: measured runs of each, at least 1.
        warmup: runs before, not counted.

    Returns:
        `encode` and `decode` (median seconds), `encode_memory` and `decode_memory` (bytes at the
        peak: what PyTorch had allocated on a GPU, weights included; the whole process on a CPU),
        `device`, `threads` (of a CPU), `repeats`, `warmup`.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats} must be at least 1 and warmup={warmup} at least 0")
    latent = encode(video)
    result = {}
    for name, call, x in (("encode", encode, video), ("decode", decode, latent)):
        for _ in range(warmup):
            call(x)
        reset_peak_memory(video.device)
        seconds = []
        for _ in range(repeats):
            started = _now(video.device)
            call(x)
            seconds.append(_now(video.device) - started)
        result[name] = statistics.median(seconds)
        result[f"{name}_memory"] = peak_memory_bytes(video.device)
    return {**result, **describe_device(video.device), "repeats": repeats, "warmup": warmup}


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name of the device and, of a CPU, the threads that torch uses."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "threads": None}
    return {"device": _cpu_name(), "threads": torch.get_num_threads()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
