"""What this machine has: processors, GPUs, decoders, disk, optional packages."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import av
import psutil
import torch

from common.measure import GIGABYTE

DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "ffv1", "mjpeg")
"""Codecs that the data sets and our own files use."""
OPTIONAL = {
    "diffusers": "--vae cogvideox and wan",
    "torchcodec": "faster decoding, data.decoder",
    "wandb": "train.wandb",
}
"""Packages that only some options need."""


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    pinned = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if pinned else os.cpu_count() or 1


def one_thread(_: int = 0) -> None:
    """Let a worker compute with one thread: workers scale by their number, not by threads that
    compete for CPUs. Also a `DataLoader`'s `worker_init_fn`."""
    torch.set_num_threads(1)


def system() -> list[str]:
    """Versions, processors, memory."""
    memory, cpus = psutil.virtual_memory(), usable_cpus()
    cudnn = torch.backends.cudnn.version()
    return [
        f"{platform.system()} {platform.machine()}, {cpus} CPUs, {gigabytes(memory.total)} memory "
        f"({gigabytes(memory.available)} free)",
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda or 'none'}, cuDNN {cudnn or 'none'}",
    ]


def devices() -> list[str]:
    """Each GPU, or that there is none."""
    if not torch.cuda.is_available():
        return [f"no GPU; torch runs on the CPU with {torch.get_num_threads()} threads"]
    lines = []
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        lines.append(
            f"cuda:{i} {about.name}, {gigabytes(total)} ({gigabytes(free)} free), compute "
            f"capability {about.major}.{about.minor}, {bf16}"
        )
    return lines


def decoders() -> list[str]:
    """Which codecs PyAV's FFmpeg reads."""
    missing = [name for name in DECODERS if name not in av.codecs_available]
    found = [name for name in DECODERS if name not in missing]
    lacks = f"; NOT {', '.join(missing)}" if missing else ""
    return [f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info}): {', '.join(found)}{lacks}"]


def options() -> list[str]:
    """Optional packages, and what needs them."""
    return [
        f"{name} {importlib.metadata.version(name)}"
        if importlib.util.find_spec(name)
        else f"{name} is not installed (for {use})"
        for name, use in OPTIONAL.items()
    ]


def disk(folder: Path) -> str:
    """Free space where `folder` is or will be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = gigabytes(shutil.disk_usage(there).free)
    return f"{folder}: {free} free" + ("" if os.access(there, os.W_OK) else ", NOT WRITABLE")


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name of the device and, of a CPU, the threads that torch uses."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "threads": None}
    return {"device": _cpu_name(), "threads": torch.get_num_threads()}


def gigabytes(size: float) -> str:
    """Such as `24 GB`."""
    return f"{size / GIGABYTE:.0f} GB"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
