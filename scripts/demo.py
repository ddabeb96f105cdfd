"""From raw videos to a measured generator: every stage of the pipeline on a few real clips."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from common.cli import main
from common.files import read_json, write_json
from common.launch import call
from common.measure import GIGABYTE, peak_memory_bytes
from data.importers.demo_clips import demo_records, fetch_clips
from data.shards.write import ShardConfig, write_shards
from eval.report.demo import evaluate_demo
from eval.report.demo_report import build_demo_report

SCRIPTS = Path(__file__).parent
CONFIGS = Path(os.path.relpath(SCRIPTS.parent / "configs" / "demo"))
RUN = Path("runs/demo")
CLIPS = Path("datasets/demo/clips")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the demo: pack clips, train both VAEs, Latte and a classifier, sample, measure, report.

    Rerun to go on where it stopped: finished stages are skipped.
    """

    configs: str | None = None
    """Folder of the stages' configs; default: configs/demo/cuda with a GPU, else configs/demo/cpu.
    """


COMMANDS = {
    "image_vae": "train_vae.py",
    "video_vae": "train_vae.py",
    "latents": "cache_latents.py",
    "classifier": "train_classifier.py",
    "latte": "train_latte.py",
    "samples": "sample.py",
    "reconstruct": "eval_reconstruction.py",
}
"""Stages that are commands of the user, each with the config of its name."""


def run(config: Demo) -> None:
    """All stages in order, then where to look."""
    default = CONFIGS / ("cuda" if torch.cuda.is_available() else "cpu")
    configs = Path(config.configs) if config.configs else default
    missing = [name for name in ("data", *COMMANDS) if not (configs / f"{name}.yaml").is_file()]
    if missing:
        raise ValueError(f"{configs}: no {missing[0]}.yaml, which the demo needs")
    print(f"demo with {configs}, results in {RUN}")
    _stage("data", configs / "data.yaml", lambda: _pack(configs / "data.yaml"))
    for name, script in COMMANDS.items():
        file = configs / f"{name}.yaml"
        _stage(name, file, lambda file=file, script=script: _command(script, "--config", str(file)))
    _stage("untrained", configs / "samples.yaml", lambda: _untrained(configs / "samples.yaml"))
    _stage("evaluate", configs / "samples.yaml", lambda: _measured(lambda: evaluate_demo(RUN)))
    stages = {
        name: read_json(_stamp(name)) for name in ("data", *COMMANDS, "untrained", "evaluate")
    }
    metrics = read_json(RUN / "scores.json") | {
        "reconstruction": read_json(RUN / "reconstruction" / "metrics.json")["metrics"],
        "stages": {
            name: {k: stamp[k] for k in ("seconds", "memory_gb")} for name, stamp in stages.items()
        },
    }
    write_json(RUN / "metrics.json", metrics)
    build_demo_report(RUN, configs)
    print(f"\n{RUN}/report.html shows the result, {RUN}/metrics.json holds the figures")


def _stage(name: str, config: Path, work: Callable[[], int]) -> None:
    """Do a stage unless its stamp says that it was done with this config."""
    stamp, text = _stamp(name), config.read_text()
    if stamp.exists():
        if read_json(stamp)["config"] != text:
            raise ValueError(
                f"{config}: changed since {RUN} was made with it. Delete {RUN} to start anew."
            )
        print(f"[{name}] is there already")
        return
    print(f"\n[{name}]", flush=True)
    start = time.perf_counter()
    memory = work()
    seconds = time.perf_counter() - start
    write_json(
        stamp,
        {"config": text, "seconds": round(seconds, 1), "memory_gb": round(memory / GIGABYTE, 3)},
    )
    print(f"[{name}] took {seconds:.0f} s, {memory / GIGABYTE:.2f} GB at most", flush=True)


def _stamp(name: str) -> Path:
    return RUN / "stages" / f"{name}.json"


def _pack(config: Path) -> int:
    fetch_clips(CLIPS)
    options = ShardConfig(**(yaml.safe_load(config.read_text()) or {}))

    def pack() -> None:
        for part in ("train", "test"):
            records, names = demo_records(CLIPS, part)
            workers = len(os.sched_getaffinity(0))
            write_shards(records, RUN / "shards" / part, options, names, workers=workers)

    return _measured(pack)


def _untrained(config: Path) -> int:
    """Samples of fresh weights, in a folder of their own."""
    out = str(RUN / "samples_untrained")
    return _command("sample.py", "--config", str(config), "--untrained=true", f"--out={out}")


def _command(script: str, *arguments: str) -> int:
    """Run a command of the user; returns its peak memory in bytes."""
    return call([sys.executable, str(SCRIPTS / script), *arguments])


def _measured(work: Callable[[], object]) -> int:
    work()
    return peak_memory_bytes()


if __name__ == "__main__":
    main(Demo, run)
