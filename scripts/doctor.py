"""What this machine can do, and which weights of others it has: one screen."""

from dataclasses import dataclass
from pathlib import Path

from common import machine
from common.cli import main
from common.config import Config
from common.published_weights import ALL
from common.weights import PublishedWeights, cache_folders, locate_weights

MARKS = {True: "verified", None: "found", False: "OTHER FILE"}
"""By what `PublishedWeights.verify` says."""


@dataclass(frozen=True, kw_only=True)
class Doctor(Config):
    """Show devices, versions, decoders, disk, memory, and which weights of others are here.

    Of every file: where it was found, whether it is the published one, or how to get it.
    """

    folder: str = "."
    """Folder for runs and data, whose disk is looked at."""


def run(config: Doctor) -> None:
    """Look and print."""
    folder = Path(config.folder)
    if not folder.is_dir():
        raise ValueError(f"folder={folder}: no such folder")
    for name, lines in {
        "machine": machine.system(),
        "devices": machine.devices(),
        "decoders": machine.decoders(),
        "disk": [machine.disk(folder), machine.disk(cache_folders()[1])],
        "options": machine.options(),
    }.items():
        for number, line in enumerate(lines):
            print(f"{'' if number else name:10}{line}")
    print(f"weights   looked for in {', '.join(map(str, cache_folders()))}")
    for weights in ALL:
        print(weights_line(weights))
    print(
        "          Put a missing file into one of these folders, under this name, or its path into "
        "its variable.\n          --download of the eval commands fetches files marked +. Missing "
        "files have about these sizes;\n          training checkpoints hold more besides."
    )


def weights_line(weights: PublishedWeights) -> str:
    """Where a file was found and whether it is the published one, or how to get it."""
    path = locate_weights(weights)
    if path is None:
        mark, size = "missing" + (" +" if weights.url else ""), weights.size
        rest = f"{weights.variable}; from {weights.source}"
    else:
        mark, size = MARKS[weights.verify(path)], path.stat().st_size / 1e6
        rest = str(path)
    return f"  {mark:11}{size:>5.0f} MB  {weights.file} ({weights.use}): {rest}"


if __name__ == "__main__":
    main(Doctor, run)
