"""Pack a folder of videos into shards for training and evaluation."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.importers.folder import scan_folder
from data.records import VideoRecord, split_by_id
from data.shards import ShardConfig, ShardReport, write_shards
from engine.cli import main


@dataclass(frozen=True, kw_only=True)
class MakeShardsConfig(ShardConfig):
    """Pack a folder of videos into webdataset shards; run it again to continue after a stop."""

    root: Path
    """Folder of videos, in one folder for each class."""
    out: Path
    """Folder for the shards."""
    labels: Literal["parent", "none"] = "parent"
    """Class of a video: the name of its folder, or none."""
    part: Literal["all", "train", "test"] = "all"
    """Which videos: all, or one side of the split that `holdout` makes by a hash of each id."""
    holdout: float = 0.1
    """Fraction of the videos that are the part `test`; the others are `train`."""
    bad: Literal["stop", "skip"] = "stop"
    """A video that cannot be decoded ends the run, or is left out and reported."""
    workers: int | None = None
    """Processes that decode and encode; by default one for each CPU, 0 for none besides this."""
    dry_run: bool = False
    """Only look: say what would be packed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers={self.workers} must be 0 or more")


def run(config: MakeShardsConfig) -> None:
    """Scan, split, pack, report."""
    records, class_names = scan_folder(config.root, config.labels)
    if config.part != "all":
        records = split_by_id(records, config.holdout, config.part)
    print(f"{config.root}: {len(records)} videos, {len(class_names)} classes")
    if config.dry_run:
        _describe(records, class_names)
        return
    workers = len(os.sched_getaffinity(0)) if config.workers is None else config.workers
    report = write_shards(
        records, config.out, _shard_config(config), class_names, bad=config.bad, workers=workers
    )
    _print(report, config.out)


def _shard_config(config: MakeShardsConfig) -> ShardConfig:
    return ShardConfig(**{name: getattr(config, name) for name in ShardConfig.__dataclass_fields__})


def _describe(records: list[VideoRecord], class_names: list[str]) -> None:
    for label, name in enumerate(class_names):
        print(f"  {name}: {sum(record.label == label for record in records)}")
    for record in records[:3]:
        print(f"  {record.id}  <-  {record.path}")


def _print(report: ShardReport, out: Path) -> None:
    print(
        f"{out}: {report.written} of {report.found} videos written "
        f"({report.hours:.2f} hours, {report.bytes / 1e6:.1f} MB, {report.shards} shards); "
        f"{report.short} too short, {report.bad} bad"
    )
    for failure in report.failures:
        print(f"  bad: {failure['reason']}")
    for name, count in report.classes.items():
        print(f"  {name}: {count}")
    print(f"Report: {out / 'report.json'}")


if __name__ == "__main__":
    main(MakeShardsConfig, run)
