"""From raw videos to a measured generator: every stage of the pipeline on a few real clips."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from common.cli import main, parse
from common.config import Config
from common.files import atomic_path, read_json, write_json
from common.machine import usable_cpus
from common.measure import peak_memory_bytes
from common.output_folder import lock_folder
from common.stages import CommandStages, run_stage
from data.importers.wheels import demo_records, fetch_clips
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from data.video.decode import read_frames
from eval.experiments.experiment_scores import FRAMES, ExperimentScores

SCRIPTS = Path(__file__).parent
CONFIGS = Path(os.path.relpath(SCRIPTS.parent / "configs" / "demo"))
PAGE = SCRIPTS.parent / "configs" / "demo" / "report.yaml"
RUN = Path("runs/demo")
CLIPS = Path("datasets/demo/clips")
NOISE = 0.6
NEAREST_STRIDE = 8  # frames between the training clips that generated ones are compared with


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

    @property
    def end(self) -> str:
        """Of the names of what depends on `diffusion`."""
        return "" if self.diffusion == "flow" else f"_{self.diffusion}"


TWO_PROCESSES = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node 2"
SHARED = {
    "image_vae": "train_vae.py",
    "video_vae": "train_vae.py",
    "latents": "cache_latents.py",
    "classifier": "train_classifier.py",
    "reconstruct": "eval_reconstruction.py",
}
"""Stages that are commands of the user, each with the config of its name, whatever Latte learns."""


def stages(end: str) -> dict[str, str]:
    """All of them, in order."""
    return SHARED | {f"latte{end}": "train_latte.py", f"samples{end}": "sample.py"}


def run(config: Demo) -> None:
    """All stages in order, then where to look."""
    default = CONFIGS / ("cuda" if torch.cuda.is_available() else "cpu")
    configs = Path(config.configs) if config.configs else default
    names = ("data", *stages(config.end))
    missing = [name for name in names if not (configs / f"{name}.yaml").is_file()]
    if missing:
        raise ValueError(f"{configs}: no {missing[0]}.yaml, which the demo needs")
    alone = torch.cuda.is_available() or usable_cpus() < 2
    launcher = config.launcher or (sys.executable if alone else TWO_PROCESSES)
    with lock_folder(RUN):
        _run(configs, config.end, launcher)


def _run(configs: Path, end: str, launcher: str) -> None:
    print(f"demo with {configs}, results in {RUN}")
    commands, records = CommandStages(scripts=SCRIPTS), RUN / "stages"
    launched = CommandStages(scripts=SCRIPTS, launcher=launcher, done=commands.done)

    # Pack, train, reconstruct, sample
    packed = _pack(configs / "data.yaml", records / "data.json")
    for name, script in stages(end).items():
        runner = commands if script == "eval_reconstruction.py" else launched  # in one process
        runner.run(records / f"{name}.json", script, config=configs / f"{name}.yaml")
    untrained = {"untrained": True, "out": RUN / f"untrained{end}"}
    sampling = configs / f"samples{end}.yaml"
    commands.run(records / f"untrained{end}.json", "sample.py", untrained, config=sampling)

    # Score as many clips of every set as the smallest has
    generated = read_json(RUN / f"samples{end}" / "samples.json")["clips"]
    first = read_frames(RUN / f"samples{end}" / generated[0]["file"], [0])
    saved = read_json(RUN / "reconstruction" / "metrics.json")
    num_clips = min(len(generated), len(saved["clips"]))
    scores = ExperimentScores(
        commands=commands,
        records=records,
        results=RUN / "scores",
        classifier=RUN / "classifier" / "export",
        reference=RUN / "shards" / "train",
        num_clips=num_clips,
        size=(first.shape[1], first.shape[2]),
    )
    test, real = RUN / "shards" / "test", {"fake_is_real": True}
    nearest = {"held_out": test, "nearest_stride": NEAREST_STRIDE}
    found = {
        "generated": scores.score(f"generated{end}", RUN / f"samples{end}", {}, nearest),
        "held-out clips": scores.score("held-out", test, real),
        "held-out clips through the VAE": scores.score("through-vae", RUN / "reconstruction/vae"),
        "held-out clips with noise": scores.score("noise", test, {**real, "noise_fake": NOISE}),
        "untrained generator": scores.score(f"untrained{end}", RUN / f"untrained{end}"),
    }

    # Figures and page
    metrics = {
        "scores": {name: scored.summary for name, scored in found.items()},
        "recognized_by_class": found["generated"].inception["accuracy_by_class"],
        "memorization": found["generated"].fvd["memorization"],
        "classifier": read_json(RUN / "classifier" / "metrics.json")["test"],
        "protocol": {"frames": FRAMES, "noise": NOISE, "reference": "training clips"},
        "reconstruction": saved["metrics"],
        "stages": {
            name: {k: record[k] for k in ("seconds", "cpu_seconds", "memory_gb")}
            for name, record in {"data": packed, **commands.done}.items()
        },
    }
    write_json(RUN / f"metrics{end}.json", metrics)
    page = RUN / f"report{end}.yaml"
    with atomic_path(page) as temporary:
        temporary.write_text(PAGE.read_text().format(end=end, **_page_values(metrics, end)))
    commands.run(RUN / f"report{end}.json", "report.py", config=page)
    print(f"\n{RUN}/report{end}.html shows the result, {RUN}/metrics{end}.json holds the figures")


def _page_values(metrics: dict[str, Any], end: str) -> dict[str, Any]:
    """What the page's texts name."""
    scores, by_class = metrics["scores"], metrics["recognized_by_class"]
    vae, trilinear = (metrics["reconstruction"][name] for name in ("vae", "trilinear"))
    nearest = metrics["memorization"]["nearest"]
    return {
        "process": "the paper's diffusion" if end else "rectified flow",
        "classes": len(by_class),
        "recognized": sum(share > 0.5 for share in by_class.values()),
        "minutes": sum(stage["seconds"] for stage in metrics["stages"].values()) / 60,
        "cpu_minutes": sum(stage["cpu_seconds"] for stage in metrics["stages"].values()) / 60,
        "generated_gray": nearest["generated"]["median_gray_levels"],
        "held_out_gray": nearest["held_out"]["median_gray_levels"],
        "vae_gray": 255 / 10 ** (vae["psnr"] / 20),
        "held_out_accuracy": 100 * metrics["classifier"]["accuracy"],
        "held_out_clips": metrics["classifier"]["clips"],
        "psnr": vae["psnr"],
        "ssim": vae["ssim"],
        "trilinear_psnr": trilinear["psnr"],
        "trilinear_ssim": trilinear["ssim"],
        "fvd": scores["generated"]["fvd_demo"],
        "untrained_fvd": scores["untrained generator"]["fvd_demo"],
    }


def _pack(config: Path, record: Path) -> dict[str, Any]:
    fetch_clips(CLIPS)
    options = parse(ShardConfig, ["--config", str(config)])

    def pack() -> int:
        for part in ("train", "test"):
            records, names = demo_records(CLIPS, part)
            write_shards(records, RUN / "shards" / part, options, names)
        return peak_memory_bytes()

    return run_stage(record, pack, settings={config.name: config.read_text()})


if __name__ == "__main__":
    main(Demo, run)
