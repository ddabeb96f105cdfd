"""Train the rows of the paper's ablation on one budget and tabulate what they reach."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from common.cli import main
from common.config import Config
from common.files import atomic_path, write_json
from common.launch import call
from common.output_folder import lock_folder
from common.stages import run_stage
from engine.run_folder import read_log
from vae.config import PRESETS
from vae.registry import OTHERS, load_vae

SCORES = ("psnr", "ssim", "ssim_1", "ssim_2", "ssim_3", "ssim_4", "ssim_margin")
TRAIN = Path(__file__).with_name("train_vae.py")


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
    of all of them (the regular initialisation)."""
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


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    architecture: str
    from_image: bool

    @property
    def name(self) -> str:
        """Of its runs' folders, and in the table."""
        return f"{self.architecture}_from_image" if self.from_image else self.architecture


def run(config: Ablate) -> None:
    """Train what is missing, then write ablation.json and ablation.md."""
    with lock_folder(config.folder):
        _run(config)


def _run(config: Ablate) -> None:
    entries = [Entry(row, False) for row in config.architectures]
    entries += [Entry(row, True) for row in config.image_starts]
    results: dict[str, Any] = {entry.name: {"parameters": 0, "scores": {}} for entry in entries}
    for seed in config.seeds:
        for entry in entries:
            folder = _train(config, entry, seed)
            result = results[entry.name]
            model = load_vae(folder / "export")
            result["parameters"] = sum(p.numel() for p in model.parameters())
            result["scores"][seed] = _scores(folder)
        write_json(config.folder / "ablation.json", results)
        with atomic_path(config.folder / "ablation.md") as temporary:
            temporary.write_text(_table(results))
    print(_table(results), end="")


def _train(config: Ablate, entry: Entry, seed: int) -> Path:
    """The folder of a finished run, which is trained or resumed where it is not done."""
    folder = config.folder / entry.name
    start = None
    if entry.from_image:
        image = folder / f"image-{seed}"
        start = image / "export"
        _stage(config, config.image, entry, seed, image)
    _stage(config, config.video, entry, seed, folder / f"video-{seed}", start)
    return folder / f"video-{seed}"


def _stage(
    config: Ablate,
    file: Path | None,
    entry: Entry,
    seed: int,
    folder: Path,
    start: Path | None = None,
) -> None:
    """Train by one config, unless its record says that it was done with the same."""
    assert file is not None
    command = [*shlex.split(config.launcher), str(TRAIN), "--config", str(file)]
    command += [f"--architecture={entry.architecture}", f"--train.seed={seed}"]
    command += [f"--train.folder={folder}"]
    values = yaml.safe_load(file.read_text())
    sets = [Path((values.get(part) or {}).get("folder", "")) for part in ("data", "held_out")]
    inputs = [index for folder in sets if (index := folder / "index.json").is_file()]
    if start is not None:
        command += ["--init_from", str(start)]
        inputs.append(start / "model.safetensors")
    settings = {"architecture": entry.architecture, "seed": seed, "config": file.read_text()}
    record = folder.with_name(f"{folder.name}.json")
    run_stage(record, lambda: call(command), settings=settings, inputs=inputs)


def _scores(folder: Path) -> dict[str, float]:
    last = read_log(folder)[-1]
    try:
        return {name: last[f"eval/ema/{name}"] for name in SCORES}
    except KeyError as error:
        raise ValueError(
            f"{folder}: no {error} at the last step. Set held_out, and train.evaluate_every to "
            "something that divides train.steps."
        ) from error


def _table(results: dict[str, Any]) -> str:
    lines = ["| row | parameters | " + " | ".join(SCORES) + " |", "|---" * (2 + len(SCORES)) + "|"]
    for name, result in results.items():
        runs = result["scores"].values()
        cells = [_cell([r[score] for r in runs], 2 if score == "psnr" else 4) for score in SCORES]
        lines.append(f"| {name} | {result['parameters']:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    main(Ablate, run)
