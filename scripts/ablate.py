"""Train the rows of the paper's ablation on one budget and tabulate what they reach."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.cli import main
from common.config import Config
from common.files import atomic_path, write_json
from common.output_folder import lock_folder
from common.stages import CommandStages
from engine.run_folder import read_log
from eval.report.seed_table import seed_table
from vae.config import PRESETS
from vae.registry import OTHERS, load_vae

SCORES = {"psnr": 2} | dict.fromkeys(
    ("ssim", "ssim_1", "ssim_2", "ssim_3", "ssim_4", "ssim_margin"), 4
)
"""Scores of the table, with their decimals."""


@dataclass(frozen=True, kw_only=True)
class Ablate(Config):
    """Train every row of the paper's ablation with the same data, steps and seeds, and compare.

    Run it again to go on where it stopped. The table has the mean and the standard deviation over
    the seeds, of the averaged weights, on the held-out clips (supplement, Table 5).
    """

    folder: Path
    """Folder of the runs and of the table."""
    video: Path
    """Config of train_vae.py for every row, scored at its last step (train.evaluate_every)."""
    image: Path | None = None
    """Config of train_vae.py for the image VAE that a row in `image_starts` is inflated from."""
    architectures: tuple[str, ...] = ("baseline", "baseline_gcconv", "ktc", "ktc_gcconv", "ivvae")
    """Rows trained from random weights; cv_vae, od_vae, od_vae_gcconv, opensora_v12, cogvideox and
    wan are rows too: the architectures that the paper compares with, on the same budget."""
    image_starts: tuple[str, ...] = ()
    """Rows also trained from an image VAE: with two branches of half the latent channels, with one
    of all of them (the regular initialization)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the weights, of the data's order and of the noise."""
    launcher: str = sys.executable
    """What starts train_vae.py, such as "accelerate launch"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for row in (*self.architectures, *self.image_starts):
            if row not in (*PRESETS, *OTHERS):
                raise ValueError(f"row {row!r}: use some of {', '.join((*PRESETS, *OTHERS))}")
        if others := [row for row in self.image_starts if row in OTHERS]:
            raise ValueError(
                f"image_starts={others}: these models cannot be inflated from an image VAE; name "
                "them in rows"
            )
        if self.image_starts and self.image is None:
            raise ValueError(f"image_starts={self.image_starts} needs the config `image`")
        if not self.seeds or not (self.architectures or self.image_starts):
            raise ValueError("name at least one seed and one row")
        for path in (self.video, self.image):
            if path is not None and not path.is_file():
                raise ValueError(f"{path}: no such config file")


def run(config: Ablate) -> None:
    """Train what is missing, then write ablation.json and ablation.md."""
    with lock_folder(config.folder):
        _run(config)


def _run(config: Ablate) -> None:
    entries = {row: (row, False) for row in config.architectures}
    entries |= {f"{row}_from_image": (row, True) for row in config.image_starts}
    results: dict[str, Any] = {name: {"parameters": 0, "scores": {}} for name in entries}
    table = ""
    for seed in config.seeds:
        for name, (architecture, from_image) in entries.items():
            folder, start = config.folder / name, None
            if from_image:
                start = folder / f"image-{seed}"
                _train(config, config.image, architecture, seed, start)
            video = folder / f"video-{seed}"
            _train(config, config.video, architecture, seed, video, start)
            model = load_vae(video / "export")
            results[name]["parameters"] = sum(p.numel() for p in model.parameters())
            results[name]["scores"][seed] = _scores(video)
        rows = {n: ([f"{r['parameters']:,}"], r["scores"].values()) for n, r in results.items()}
        table = "\n".join(seed_table(["row", "parameters"], rows, SCORES)) + "\n"
        write_json(config.folder / "ablation.json", results)
        with atomic_path(config.folder / "ablation.md") as temporary:
            temporary.write_text(table)
    print(table, end="")


def _train(
    config: Ablate,
    file: Path | None,
    architecture: str,
    seed: int,
    folder: Path,
    start: Path | None = None,
) -> None:
    """Train by one config, from the image VAE of the run `start`."""
    assert file is not None
    options = {"architecture": architecture, "train.seed": seed, "train.folder": folder}
    values = yaml.safe_load(file.read_text())
    sets = [Path((values.get(part) or {}).get("folder", "")) for part in ("data", "held_out")]
    inputs = [index for each in sets if (index := each / "index.json").is_file()]
    if start is not None:
        options["init_from"] = start / "export"
        inputs.append(start / "export" / "model.safetensors")
    commands = CommandStages(scripts=Path(__file__).parent, launcher=config.launcher)
    record = folder.with_name(f"{folder.name}.json")
    commands.run(record, "train_vae.py", options, config=file, inputs=inputs)


def _scores(folder: Path) -> dict[str, float]:
    last = read_log(folder)[-1]
    try:
        return {name: last[f"eval/ema/{name}"] for name in SCORES}
    except KeyError as error:
        raise ValueError(
            f"{folder}: no {error} at the last step. Set held_out, and train.evaluate_every to "
            "something that divides train.steps."
        ) from error


if __name__ == "__main__":
    main(Ablate, run)
