"""Index webdataset shards that another tool wrote, so that they load like those of make_shards."""

from dataclasses import dataclass
from typing import Literal

from common.cli import main
from common.config import Config, Workers
from common.machine import usable_cpus
from data.shards.external import index_external


@dataclass(frozen=True, kw_only=True)
class IndexShards(Config):
    """Index webdataset shards of another tool; run it again to go on, or after a change."""

    shards: str
    """Folder of the tars; those in folders below count, too. They are only read."""
    out: str | None = None
    """Folder for index.json, to be named wherever a folder of shards is asked for. Default: the
    folder of the tars."""
    on_error: Literal["stop", "skip"] = "stop"
    """A video that cannot be decoded, or a tar without its end, ends the run or is reported."""
    decode: Literal["all", "first"] = "all"
    """Decode every frame, so that loading refuses nothing that is taken; or, in a small part of the
    time, only the first."""
    strict_decoding: bool = True
    """Refuse videos with damaged data; False takes what the decoder makes of them."""
    workers: Workers | None = None
    """Processes, each with a tar of its own; by default one for each CPU, 0 for none besides
    this."""


def run(config: IndexShards) -> None:
    """Scan the tars, write the index, report."""
    workers = usable_cpus() if config.workers is None else config.workers
    report = index_external(
        config.shards,
        config.out,
        strict=config.strict_decoding,
        on_error=config.on_error,
        decode=config.decode,
        workers=workers,
    )
    print(
        f"{config.out or config.shards}: {report.written} of {report.found} samples in "
        f"{report.shards} tars indexed; {len(report.without_video)} without a video, "
        f"{len(report.failures)} failed, {report.unlabeled} unlabeled"
    )
    if report.unchecked:
        print(f"  {report.unchecked} videos were not decoded beyond their first frame")
    for name in report.cut:
        print(f"  no end: {name}: cut after a member, or written so")
    for failure in report.failures:
        print(f"  failed: {failure.id}: {failure.reason}")


if __name__ == "__main__":
    main(IndexShards, run)
