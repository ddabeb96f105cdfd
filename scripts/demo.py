"""From raw videos to a measured generator: every stage of the pipeline on a few real clips."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from common.cli import main, parse
from common.config import Config
from common.files import atomic_path, read_json, write_json
from common.measure import peak_memory_bytes
from common.output_folder import lock_folder
from common.stages import CommandStages, run_stage
from data.importers.wheels import demo_records, fetch_clips
from data.shards.index import ShardIndex
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from data.video.decode import read_frames
from eval.protocols.experiment_scores import FRAMES, ClipScores, ExperimentScores

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

NOISE = 0.6
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "held-out clips": ("shards/test", {"fake_is_real": True}),
    "held-out clips through the VAE": ("reconstruction/vae", {}),
    "generated": ("samples", {}),
    "held-out clips with noise": ("shards/test", {"fake_is_real": True, "noise_fake": NOISE}),
    "untrained generator": ("samples_untrained", {}),
}
"""Clips that are scored: their folder, and options of eval_fvd and eval_is."""


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
    commands, records = CommandStages(scripts=SCRIPTS), RUN / "stages"

    # Train, sample, reconstruct
    _pack(configs / "data.yaml", records / "data.json")
    for name, script in COMMANDS.items():
        commands.run(records / f"{name}.json", script, config=configs / f"{name}.yaml")
    commands.run(
        records / "untrained.json",
        "sample.py",
        {"untrained": True, "out": RUN / "samples_untrained"},
        config=configs / "samples.yaml",
    )

    # Score as many clips of every set as the smallest has
    generated = read_json(RUN / "samples" / "samples.json")["clips"]
    first = read_frames(RUN / "samples" / generated[0]["file"], [0])
    saved = read_json(RUN / "reconstruction" / "metrics.json")
    test = ShardIndex.load(RUN / "shards" / "test").entries
    scores = ExperimentScores(
        commands=commands,
        records=records,
        results=RUN / "scores",
        classifier=RUN / "classifier" / "export",
        reference=RUN / "shards" / "train",
        num_clips=min(len(generated), len(test), len(saved["clips"])),
        size=(first.shape[1], first.shape[2]),
    )
    found = {
        name: scores.score(name.replace(" ", "-"), RUN / folder, options)
        for name, (folder, options) in SETS.items()
    }

    # Figures and page
    metrics = {
        "scores": {name: scored.summary for name, scored in found.items()},
        "protocol": _protocol(found["generated"]),
        "reconstruction": saved["metrics"],
        "stages": {
            file.stem: {k: record[k] for k in ("seconds", "memory_gb")}
            for file in sorted(records.glob("*.json"))
            for record in [read_json(file)]
        },
    }
    write_json(RUN / "metrics.json", metrics)
    page = RUN / "report.yaml"
    with atomic_path(page) as temporary:
        temporary.write_text(yaml.safe_dump(_page(metrics), sort_keys=False, allow_unicode=True))
    commands.run(RUN / "report.json", "report.py", config=page)
    print(f"\n{RUN}/report.html shows the result, {RUN}/metrics.json holds the figures")


def _pack(config: Path, record: Path) -> None:
    fetch_clips(CLIPS)
    options = parse(ShardConfig, ["--config", str(config)])

    def pack() -> int:
        for part in ("train", "test"):
            records, names = demo_records(CLIPS, part)
            workers = len(os.sched_getaffinity(0))
            write_shards(records, RUN / "shards" / part, options, names, workers=workers)
        return peak_memory_bytes()

    run_stage(record, pack, settings={config.name: config.read_text()})


def _protocol(scored: ClipScores) -> dict[str, Any]:
    return {
        "frames": FRAMES,
        "noise": NOISE,
        "reference": "training clips",
        "reference_clips": scored.fvd["protocol"]["clips_real"],
        "classes": scored.inception["classes"],
        "classifier": read_json(RUN / "classifier" / "metrics.json")["test"],
    }


def _page(metrics: dict[str, Any]) -> dict[str, Any]:
    """Options of report.py: what the page shows, under which words."""
    scores, protocol = metrics["scores"], metrics["protocol"]
    vae, trilinear = (metrics["reconstruction"][name] for name in ("vae", "trilinear"))
    generated, untrained = scores["generated"], scores["untrained generator"]
    minutes = sum(stage["seconds"] for stage in metrics["stages"].values()) / 60
    files = {name: RUN / "scores" / name.replace(" ", "-") for name in SETS}
    return {
        "title": "From raw videos to a measured generator",
        "out": str(RUN / "report.html"),
        "summary": [
            "A small IV-VAE and a small class-conditional Latte, trained on "
            f"{protocol['classes']} shots of a few seconds each and measured on later parts of the "
            "same shots. Every stage is the command that a real run uses.",
            "The data are far too few for numbers that mean anything beyond this page: distances "
            "and scores are computed with a small classifier trained on these very shots, which "
            f"recognizes {100 * protocol['classifier']['accuracy']:.0f} % of held-out clips. They "
            "are not FVD and IS, and only rows of one table compare. The generator has seen a few "
            "seconds of each shot: what it shows is at best a memory of them.",
            "The baseline called keyframes repeats the last frame of each group: it compresses "
            "nothing in space. Trilinear is down- and upsampling by 4x8x8.",
        ],
        "facts": {
            "PSNR, held out": f"{vae['psnr']:.2f} dB; trilinear {trilinear['psnr']:.2f} dB",
            "SSIM, held out": f"{vae['ssim']:.4f}; trilinear {trilinear['ssim']:.4f}",
            "fvd_demo, generated": f"{generated['fvd_demo']:.2f}; untrained "
            f"{untrained['fvd_demo']:.2f}; lower is better",
            "Class recognized": f"{100 * generated['recognized']:.0f} %; chance "
            f"{100 / protocol['classes']:.0f} %",
            "All stages": f"{minutes:.1f} min",
        },
        "results": [
            f"held-out clips={RUN / 'reconstruction'}",
            *(
                f"{name}={file}-{kind}.json"
                for kind in ("fvd", "is")
                for name, file in files.items()
            ),
            f"Generated, by class={RUN / 'samples'}",
            f"The same noise without training={RUN / 'samples_untrained'}",
            *(
                f"{name.replace('_', ' ')}={RUN / name}"
                for name in ("image_vae", "video_vae", "latte")
            ),
            f"stages={RUN / 'stages'}",
        ],
    }


if __name__ == "__main__":
    main(Demo, run)
