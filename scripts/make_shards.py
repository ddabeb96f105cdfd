"""Pack a data set into shards for training and evaluation."""

import os
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from accelerate import InitProcessGroupKwargs
from annotated_types import Gt

from common.accelerator import make_accelerator
from common.cli import main
from common.config import Workers
from common.machine import usable_cpus
from data.importers import IMPORTERS, ImportResult
from data.shards.pack_video import ShardConfig
from data.shards.packing_run import dry_run
from data.shards.report import scan_lines
from data.shards.write import write_shards
from data.video.container import TIME_LIMIT

PATIENCE = timedelta(weeks=4)
"""How long processes that are done wait for the others."""


@dataclass(frozen=True, kw_only=True)
class MakeShards(ShardConfig):
    """Pack a data set; what all sets have in common."""

    out: Path
    """Folder for the shards."""
    on_error: Literal["stop", "skip"] = "stop"
    """A video that cannot be packed ends the run, or is left out and reported."""
    time_limit: Annotated[float, Gt(0)] = TIME_LIMIT
    """Seconds that reading one video may take; a slower one cannot be decoded."""
    workers: Workers | None = None
    """Processes that decode and encode; by default one for each CPU, 0 for none besides this."""
    dry_run: bool = False
    """Only look: report what would be packed, by the files' headers, and write nothing."""


def _command(importer: type) -> type:
    """One command for each set: its importer's options and those of packing."""
    contents = {"__doc__": importer.__doc__, "__module__": __name__}
    return dataclass(frozen=True, kw_only=True)(
        type(importer.__name__, (importer, MakeShards), contents)
    )


COMMANDS = {name: _command(importer) for name, importer in IMPORTERS.items()}
globals().update({command.__name__: command for command in COMMANDS.values()})  # pickle looks here


def run(config: Any) -> None:
    """Scan, pack, report."""
    accelerator = None  # what connects the processes, where a launcher started several
    if os.environ.get("WORLD_SIZE", "1") != "1":
        patience = InitProcessGroupKwargs(timeout=PATIENCE)
        accelerator = make_accelerator(cpu=True, kwargs_handlers=[patience])
    is_main = accelerator is None or accelerator.is_main_process
    found: ImportResult = config.scan()
    if is_main:
        print("\n".join(scan_lines(config.root, found)))
    if not found.records:
        raise ValueError(f"{config.root}: no video to pack")
    values = {field.name: getattr(config, field.name) for field in fields(ShardConfig)}
    if any(record.images for record in found.records):  # fps is the rate that they have
        values["fps"] = None
    shard_config = ShardConfig(**values)
    workers = config.workers
    if workers is None:  # this process's share of the machine's CPUs
        workers = max(1, usable_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if config.dry_run:
        if is_main:
            print("\n".join(dry_run(found, shard_config, workers)))
        return
    report = write_shards(
        found,
        config.out,
        shard_config,
        on_error=config.on_error,
        workers=workers,
        time_limit=config.time_limit,
        accelerator=accelerator,
    )
    if is_main:
        print("\n".join(report.lines(config.out, found)))
    if accelerator is not None:
        accelerator.end_training()


if __name__ == "__main__":
    main(COMMANDS, run)
