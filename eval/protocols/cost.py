"""What encoding and decoding cost here: time and memory, with the device named."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.measure import peak_memory_bytes, reset_peak_memory
from eval.features.extractors import full_precision


@torch.inference_mode()
def measure_cost(
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    size: tuple[int, int, int],
    device: torch.device,
    *,
    repeats: int = 5,
    warmup: int = 1,
) -> dict[str, Any]:
    """Median times and peak memory of encoding a video and of decoding its latent, in float32
    without TF32, and by autocast to bfloat16.

    Args:
        encode, decode: on `device`.
        size: frames, height and width of the video, which is noise.
        repeats: measured runs of each, at least 1.
        warmup: runs before, not counted.

    Returns:
        `encode` and `decode` (median seconds), `encode_memory` and `decode_memory` (bytes at the
        peak: what PyTorch had allocated on a GPU, weights included; the whole process on a CPU),
        `bfloat16` (the same four), `size`, `device`, `threads` (of a CPU), `repeats`, `warmup`.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats} must be at least 1 and warmup={warmup} at least 0")
    video = torch.rand(1, 3, *size, device=device) * 2 - 1

    def measure() -> dict[str, Any]:
        latent, result = encode(video), {}
        for name, call, x in (("encode", encode, video), ("decode", decode, latent)):
            for _ in range(warmup):
                call(x)
            reset_peak_memory(device)
            seconds = []
            for _ in range(repeats):
                started = _now(device)
                call(x)
                seconds.append(_now(device) - started)
            result[name] = statistics.median(seconds)
            result[f"{name}_memory"] = peak_memory_bytes(device)
        return result

    with full_precision(device):
        result = measure()
    with torch.autocast(device.type, torch.bfloat16):
        result["bfloat16"] = measure()
    described = {**describe_device(device), "size": "x".join(map(str, size))}
    return {**result, **described, "repeats": repeats, "warmup": warmup}


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
