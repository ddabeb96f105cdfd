"""From raw videos to a measured generator: every stage of the pipeline on a few real clips."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from common.cli import main, parse
from common.config import Config
from common.files import write_json, write_text
from common.machine import usable_cpus
from common.measure import peak_memory_bytes
from common.output_folder import lock_folder
from common.stages import CommandStages, run_stage
from data.importers import ImportResult
from data.importers.wheels import demo_records, fetch_clips
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from eval.experiments.demo import measure_demo

SCRIPTS = Path(__file__).parent
CONFIGS = SCRIPTS.parent / "configs" / "demo"
RUN = Path("runs/demo")
CLIPS = Path("datasets/demo/clips")
TWO_PROCESSES = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node 2"


@dataclass(frozen=True, kw_only=True)
class Demo(Config):
    """Run the demo: pack clips, train both VAEs, Latte and a classifier, sample, measure, report.

    Rerun to go on where it stopped: finished stages are skipped.
    """

    configs: str | None = None
    """Folder of the stages' configs; default: configs/demo/cuda with a GPU, else configs/demo/cpu.
    """
    diffusion: Literal["flow", "ddpm"] = "flow"
    """What Latte learns: rectified flow, or the paper's diffusion, which needs more training for
    the same pictures. Whatever is made of the latter ends in _ddpm, so both can be had."""
    launcher: str | None = None
    """What starts the stages that train, encode or sample; by default torchrun with two processes
    on a CPU of two cores or more, else python."""


def stages(end: str) -> dict[str, str]:
    """Those that are commands of the user, in order, each with the config of its name.

    Args:
        end: of the names of what depends on what Latte learns.
    """
    return {
        "image_vae": "train_vae.py",
        "video_vae": "train_vae.py",
        "latents": "cache_latents.py",
        "classifier": "train_classifier.py",
        "reconstruct": "eval_reconstruction.py",
        f"latte{end}": "train_latte.py",
        f"samples{end}": "sample.py",
    }


def run(config: Demo) -> None:
    """All stages in order, then where to look."""
    end = "" if config.diffusion == "flow" else f"_{config.diffusion}"
    default = CONFIGS / ("cuda" if torch.cuda.is_available() else "cpu")
    configs = Path(config.configs) if config.configs else default
    for name in ("data", *stages(end)):
        if not (configs / f"{name}.yaml").is_file():
            raise ValueError(f"{configs}: no {name}.yaml, which the demo needs")
    alone = torch.cuda.is_available() or usable_cpus() < 2
    launcher = config.launcher or (sys.executable if alone else TWO_PROCESSES)
    with lock_folder(RUN):
        _run(configs, end, launcher)


def _run(configs: Path, end: str, launcher: str) -> None:
    print(f"demo with {configs}, results in {RUN}")
    commands, records = CommandStages(scripts=SCRIPTS), RUN / "stages"
    launched = CommandStages(scripts=SCRIPTS, launcher=launcher, done=commands.done)

    # Pack, train, reconstruct, sample
    commands.done["data"] = _pack(configs / "data.yaml", records / "data.json")
    for name, script in stages(end).items():
        runner = commands if script == "eval_reconstruction.py" else launched  # in one process
        runner.run(records / f"{name}.json", script, config=configs / f"{name}.yaml")
    untrained = {"untrained": True, "out": RUN / f"untrained{end}"}
    sampling = configs / f"samples{end}.yaml"
    commands.run(records / f"untrained{end}.json", "sample.py", untrained, config=sampling)

    # Score, and make the page
    metrics = measure_demo(RUN, end, commands)
    write_json(RUN / f"metrics{end}.json", metrics)
    by_class, times = metrics["recognized_by_class"], metrics["stages"].values()
    values = {
        "process": "the paper's diffusion" if end else "rectified flow",
        "classes": len(by_class),
        "recognized": sum(share > 0.5 for share in by_class.values()),
        "minutes": sum(stage["seconds"] for stage in times) / 60,
        "cpu_minutes": sum(stage["cpu_seconds"] for stage in times) / 60,
        "vae_gray": 255 / 10 ** (metrics["reconstruction"]["vae"]["psnr"] / 20),
        "held_out_accuracy": 100 * metrics["classifier"]["accuracy"],
    }
    page = RUN / f"report{end}.yaml"
    write_text(page, (CONFIGS / "report.yaml").read_text().format(end=end, **values, **metrics))
    commands.run(RUN / f"report{end}.json", "report.py", config=page)
    print(f"\n{RUN}/report{end}.html shows the result, {RUN}/metrics{end}.json holds the figures")


def _pack(config: Path, record: Path) -> dict[str, Any]:
    fetch_clips(CLIPS)
    options = parse(ShardConfig, ["--config", str(config)])

    def pack() -> int:
        for part in ("train", "test"):
            found = ImportResult(*demo_records(CLIPS, part))
            write_shards(found, RUN / "shards" / part, options)
        return peak_memory_bytes()

    return run_stage(record, pack, settings={config.name: config.read_text()})


if __name__ == "__main__":
    main(Demo, run)
