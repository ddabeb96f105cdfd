"""Check shards or a latent cache, byte by byte."""

import sys
from dataclasses import asdict, dataclass
from typing import Literal

from common.cli import main
from common.config import Config, Workers
from common.files import check_output_file, write_json
from common.machine import usable_cpus
from data.verify import verify

SHOWN = 20
UNITS = {"shards": "videos", "latents": "latents"}


@dataclass(frozen=True, kw_only=True)
class VerifyData(Config):
    """Check shards or a latent cache from end to end; exit code 1 if anything is wrong."""

    data: str
    """Folder of shards (with index.json) or of a latent cache (with manifest.json)."""
    decode: Literal["none", "ends", "all"] = "all"
    """Of each video in shards: every frame, the first and the last, or none."""
    report: str | None = None
    """JSON file for the report; default: only printed."""
    workers: Workers | None = None
    """Processes; by default one for each CPU, 0 for none besides this."""


def run(config: VerifyData) -> None:
    """Check, report, exit."""
    check_output_file("report", config.report)
    workers = usable_cpus() if config.workers is None else config.workers
    found = verify(config.data, decode=config.decode, workers=workers)
    if config.report is not None:
        write_json(config.report, {**asdict(found), "ok": not found.problems})
    for problem in found.problems[:SHOWN]:
        sample = f" {problem.key}:" if problem.key else ""
        print(f"{problem.file}:{sample} {problem.reason}")
    if len(found.problems) > SHOWN:
        print(f"... and {len(found.problems) - SHOWN} more; report=FILE keeps them all")
    print(
        f"{config.data}: {found.files} shards, {found.items} {UNITS[found.kind]}, "
        f"{found.bytes / 1e6:.1f} MB; {found.checked}; {len(found.problems) or 'no'} problems"
    )
    if found.problems:
        sys.exit(1)


if __name__ == "__main__":
    main(VerifyData, run)
