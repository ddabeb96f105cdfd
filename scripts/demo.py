"""From raw videos to a measured generator: every stage of the pipeline on a few real clips."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from common.cli import main
from common.config import Config
from common.files import read_json, write_json
from common.launch import call
from common.measure import peak_memory_bytes
from common.output_folder import lock_folder
from common.stages import run_stage
from data.importers.demo_clips import demo_records, fetch_clips
from data.shards.write import ShardConfig, write_shards
from eval.report.demo import evaluate_demo
from eval.report.demo_report import build_demo_report

SCRIPTS = Path(__file__).parent
CONFIGS = Path(os.path.relpath(SCRIPTS.parent / "configs" / "demo"))
RUN = Path("runs/demo")
CLIPS = Path("datasets/demo/clips")


@dataclass(frozen=True, kw_only=True)
class Demo(Config):
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

SHARDS, TEST_SHARDS = "shards/train/index.json", "shards/test/index.json"
VAE, LATTE = (f"{name}/export/model.safetensors" for name in ("video_vae", "latte"))
INPUTS = {
    "data": (),
    "image_vae": (SHARDS, TEST_SHARDS),
    "video_vae": (SHARDS, TEST_SHARDS, "image_vae/export/model.safetensors"),
    "latents": (SHARDS, VAE),
    "classifier": (SHARDS, TEST_SHARDS),
    "latte": ("latents/manifest.json",),
    "samples": (LATTE, VAE),
    "reconstruct": (TEST_SHARDS, VAE),
    "untrained": (LATTE, VAE),
    "evaluate": (
        *(SHARDS, TEST_SHARDS, LATTE, VAE, "classifier/export/model.safetensors"),
        *("samples/samples.json", "samples_untrained/samples.json", "reconstruction/metrics.json"),
    ),
}
"""What each stage's result depends on, in the folder of the run."""


def run(config: Demo) -> None:
    """All stages in order, then where to look."""
    default = CONFIGS / ("cuda" if torch.cuda.is_available() else "cpu")
    configs = Path(config.configs) if config.configs else default
    missing = [name for name in ("data", *COMMANDS) if not (configs / f"{name}.yaml").is_file()]
    if missing:
        raise ValueError(f"{configs}: no {missing[0]}.yaml, which the demo needs")
    with lock_folder(RUN):
        _run(configs)


def _run(configs: Path) -> None:
    print(f"demo with {configs}, results in {RUN}")
    samples = configs / "samples.yaml"
    stages = {"data": _stage("data", configs / "data.yaml", lambda: _pack(configs / "data.yaml"))}
    for name, script in COMMANDS.items():
        file = configs / f"{name}.yaml"
        command = partial(_command, script, "--config", str(file))
        stages[name] = _stage(name, file, command)
    stages["untrained"] = _stage("untrained", samples, lambda: _untrained(samples))
    stages["evaluate"] = _stage("evaluate", samples, lambda: _measured(lambda: evaluate_demo(RUN)))
    metrics = read_json(RUN / "scores.json") | {
        "reconstruction": read_json(RUN / "reconstruction" / "metrics.json")["metrics"],
        "stages": {
            name: {k: done[k] for k in ("seconds", "memory_gb")} for name, done in stages.items()
        },
    }
    write_json(RUN / "metrics.json", metrics)
    build_demo_report(RUN, configs)
    print(f"\n{RUN}/report.html shows the result, {RUN}/metrics.json holds the figures")


def _stage(name: str, config: Path, work: Callable[[], int]) -> dict[str, Any]:
    """Do a stage unless it was done with this config and what the stages before it made."""
    record = RUN / "stages" / f"{name}.json"
    print(f"[{name}] is there already" if record.exists() else f"\n[{name}]", flush=True)
    settings = {config.name: config.read_text()}
    inputs = [RUN / file for file in INPUTS[name]]
    return run_stage(record, work, settings=settings, inputs=inputs)


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
