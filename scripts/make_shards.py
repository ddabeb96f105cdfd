"""Pack a data set into shards for training and evaluation."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from accelerate import Accelerator, InitProcessGroupKwargs
from annotated_types import Gt
from tqdm import tqdm

from common.accelerator import make_accelerator
from common.cli import main
from common.config import Workers
from data.importers import IMPORTERS, ImportResult
from data.shards.pack_video import Failed, ShardConfig, probe_one
from data.shards.pool import map_ordered
from data.shards.write import ShardReport, write_shards
from data.video.decode import TIME_LIMIT
from data.video.decode_errors import printable

SHOWN = 5
"""Names printed of each list; the report file has all."""
PATIENCE = timedelta(weeks=4)
"""How long processes that are done wait for the others."""


@dataclass(frozen=True, kw_only=True)
class Packing(ShardConfig):
    """What all sets have in common."""

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
        type(importer.__name__, (importer, Packing), contents)
    )


COMMANDS = {name: _command(importer) for name, importer in IMPORTERS.items()}


def run(config: Any) -> None:
    """Scan, pack, report."""
    accelerator = _accelerator()
    is_main = accelerator is None or accelerator.is_main_process
    found: ImportResult = config.scan()
    if is_main:
        _describe(config.root, found)
    if not found.records:
        raise ValueError(f"{config.root}: no video to pack")
    if config.dry_run:
        if is_main:
            _dry_run(config, found)
        return
    report = write_shards(
        found.records,
        config.out,
        _shard_config(config),
        found.class_names,
        on_error=config.on_error,
        workers=_workers(config),
        time_limit=config.time_limit,
        scan=found,
        accelerator=accelerator,
    )
    if is_main:
        _conclude(config.out, found, report)
    if accelerator is not None:
        accelerator.end_training()


def _accelerator() -> Accelerator | None:
    """What connects the processes, where a launcher started several."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    return make_accelerator(cpu=True, kwargs_handlers=[patience])


def _shard_config(config: Any) -> ShardConfig:
    values = {field.name: getattr(config, field.name) for field in fields(ShardConfig)}
    if hasattr(type(config).__bases__[0], "fps"):  # of images: the rate that they have
        values["fps"] = None
    return ShardConfig(**values)


def _workers(config: Any) -> int:
    """As many as wanted, or this process's share of the CPUs."""
    if config.workers is not None:
        return config.workers
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this machine
    return max(1, len(os.sched_getaffinity(0)) // processes)


def _describe(root: Path, found: ImportResult) -> None:
    print(f"{printable(root)}: {len(found.records)} videos, {len(found.class_names)} classes")
    for note in found.notes:
        print(f"  note: {note}")
    _list("annotated but not there", found.missing)
    _list("there but not annotated", found.unlabeled)


def _dry_run(config: Any, found: ImportResult) -> None:
    """What packing would probably report, by the headers of the files."""
    hours, short, failed = 0.0, [], []
    probe = partial(probe_one, config=_shard_config(config))
    results = map_ordered(probe, found.records, _workers(config))
    bar = tqdm(results, total=len(found.records), unit="video")
    for seen, record in zip(bar, found.records, strict=True):
        if isinstance(seen, Failed):
            failed.append(seen.reason)
        elif seen.frames < config.min_frames:
            short.append(f"{printable(record.path)}: {seen.frames} frames")
        else:
            hours += seen.frames / seen.fps / 3600
    print(f"by the headers: {hours:.2f} hours, {len(short)} too short, {len(failed)} failed")
    _list("too short", short)
    _list("failed", failed)
    counts = Counter(record.label for record in found.records)
    _histogram({name: counts[label] for label, name in enumerate(found.class_names)})
    print("Nothing was written.")


def _conclude(out: Path, found: ImportResult, report: ShardReport) -> None:
    print(
        f"{out}: {report.written} of {report.found} videos written ({report.hours:.2f} hours); "
        f"{len(report.too_short)} too short, {len(report.failures)} failed, "
        f"{len(report.missing)} missing, {len(report.unlabeled)} unlabeled"
    )
    quality = (
        ""
        if report.psnr is None
        else f"; PSNR {report.psnr:.1f} dB" + (f" (lowest {report.psnr_lowest:.1f})")
    )
    print(
        f"  {report.source_bytes / 1e6:.1f} MB became {report.bytes / 1e6:.1f} MB in "
        f"{report.shards} shards{quality}"
    )
    _list("too short", [f"{each.path}: {each.frames} frames" for each in report.too_short])
    _list("failed", [each.reason for each in report.failures])
    _list("unusual", [f"{each.path}: {'; '.join(each.notes)}" for each in report.unusual])
    for note in report.notes[len(found.notes) :]:
        print(f"  note: {note}")
    _histogram(report.classes)
    print(f"Report: {out / 'report.json'}")


def _list(what: str, names: Sequence[str]) -> None:
    if names:
        print(f"  {what}: {len(names)}")
        for name in names[:SHOWN]:
            print(f"    {name}")
        if len(names) > SHOWN:
            print(f"    and {len(names) - SHOWN} more")


def _histogram(classes: Any) -> None:
    width = max(map(len, classes), default=0)
    for name, count in classes.items():
        print(f"  {name:<{width}} {count}")


if __name__ == "__main__":
    main(COMMANDS, run)
