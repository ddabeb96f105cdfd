"""What this machine can do, and which weights of others it has: one screen."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import av
import psutil
import torch

from common.cli import main
from common.config import Config
from common.measure import GIGABYTE
from common.published_weights import ALL
from common.weights import PublishedWeights, cache_folders, locate_weights

DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "ffv1", "mjpeg")
"""Codecs that the data sets and our own files use."""
OPTIONAL = {
    "diffusers": "--vae cogvideox and wan",
    "torchcodec": "faster decoding, data.decoder",
    "wandb": "train.wandb",
}
"""Packages that only some options need."""
MARKS = {True: "verified", None: "found", False: "OTHER FILE"}
"""By what `PublishedWeights.verify` says."""


@dataclass(frozen=True, kw_only=True)
class Doctor(Config):
    """Show devices, versions, decoders, disk and memory, and every weights file of others: where it
    was found, whether it is the published one, and how to get those that are missing."""

    folder: str = "."
    """Folder for runs and data, whose disk is looked at."""


def run(config: Doctor) -> None:
    """Look and print."""
    folder = Path(config.folder)
    if not folder.is_dir():
        raise ValueError(f"folder={folder}: no such folder")
    for name, lines in {
        "machine": machine(),
        "devices": devices(),
        "decoders": decoders(),
        "disk": [disk(folder), disk(cache_folders()[1])],
        "options": options(),
    }.items():
        for number, line in enumerate(lines):
            print(f"{'' if number else name:10}{line}")
    print(f"weights   looked for in {', '.join(map(str, cache_folders()))}")
    for weights in ALL:
        print(weights_line(weights))
    print(
        "          Put a missing file into one of these folders, under this name, or its path into "
        "its variable.\n          --download of the eval commands fetches files marked +."
    )


def machine() -> list[str]:
    """Versions, processors, memory."""
    memory = psutil.virtual_memory()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
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
    there = next(
        parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists()
    )
    free = gigabytes(shutil.disk_usage(there).free)
    return f"{folder}: {free} free" + ("" if os.access(there, os.W_OK) else ", NOT WRITABLE")


def weights_line(weights: PublishedWeights) -> str:
    """Where a file was found and whether it is the published one, or how to get it."""
    path = locate_weights(weights)
    if path is None:
        mark, size = "missing" + (" +" if weights.url else ""), weights.size
        rest = f"{weights.variable}; from {weights.source}"
    else:
        mark, size = MARKS[weights.verify(path)], path.stat().st_size / 1e6
        rest = str(path)
    number = f"{size:.0f} MB" if size else "? MB"
    return f"  {mark:11}{number:>8}  {weights.file} ({weights.use}): {rest}"


def gigabytes(size: float) -> str:
    """Such as `24 GB`."""
    return f"{size / GIGABYTE:.0f} GB"


if __name__ == "__main__":
    main(Doctor, run)
