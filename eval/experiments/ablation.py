"""The ablation: VAEs trained on one budget, measured on test sets, tabulated, claims judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config import Config
from common.files import read_json, read_options, write_json, write_text
from common.stages import CommandStages
from engine.run_folder import read_log
from eval.experiments.claims import Claim, judge
from eval.report.tables import to_markdown
from eval.results.experiment_tables import ablation_tables

LOGGED = ("psnr", "ssim", "ssim_1", "ssim_2", "ssim_3", "ssim_4", "ssim_margin")
"""Scores of held-out clips in a run's log."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig(Config):
    """Which rows, seeds and test sets."""

    folder: Path
    """Folder of the runs and of the tables."""
    video: Path
    """Config of train_vae.py for every row, scored at its last step if it has train.evaluate_every.
    """
    image: Path | None = None
    """Config of train_vae.py for the image VAE that a row in `image_starts` is inflated from."""
    architectures: tuple[str, ...] = ("baseline", "baseline_gcconv", "ktc", "ktc_gcconv", "ivvae")
    """Rows trained from random weights; cv_vae, od_vae, od_vae_gcconv, opensora_v12, cogvideox and
    wan are rows too: the architectures that the paper compares with, on the same budget."""
    image_starts: tuple[str, ...] = ()
    """Rows also trained from an image VAE: with two branches of half the latent channels, with one
    of all of them (the regular initialization). Rows whose image VAEs are alike share one."""
    continued: dict[str, str] = field(default_factory=dict)
    """Rows also trained on from the weights of a row in `architectures`, such as od_vae_gcconv:
    od_vae (supplement, Fig. 1)."""
    continued_video: Path | None = None
    """Config of train_vae.py for the rows in `continued`; default: `video`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the weights, of the data's order and of the noise."""
    image_seed: int | None = None
    """Seed of the image VAEs, which the runs of all seeds then share; by default each its own."""
    tests: dict[str, Path] = field(default_factory=dict)
    """Test sets by name: folders of shards, on which the rows of a seed are measured together."""
    claims: tuple[Claim, ...] = ()
    """What the scores are to show; judged over the seeds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_starts and self.image is None:
            raise ValueError(f"image_starts={self.image_starts} needs the config `image`")
        if unknown := [row for row in self.continued.values() if row not in self.architectures]:
            raise ValueError(f"continued: {unknown[0]} is not one of {self.architectures}")
        if not self.seeds or not (self.architectures or self.image_starts):
            raise ValueError("give at least one of seeds, and of architectures or image_starts")
        for path in (self.video, self.image, self.continued_video):
            if path is not None and not path.is_file():
                raise ValueError(f"{path}: no such config file")
        for claim in self.claims:
            if unknown := [row for row in (claim.row, claim.than) if row not in self.rows]:
                raise ValueError(
                    f"claim {claim.claim!r}: no row {unknown[0]}; there are {', '.join(self.rows)}"
                )

    @property
    def rows(self) -> dict[str, tuple[str, str | None]]:
        """Name to the architecture, and what it starts from: `image` or another row."""
        return {
            **{row: (row, None) for row in self.architectures},
            **{f"{row}_from_image": (row, "image") for row in self.image_starts},
            **{f"{row}_from_{start}": (row, start) for row, start in self.continued.items()},
        }


def run_ablation(
    config: AblationConfig,
    images: Mapping[str, str],
    training: CommandStages,
    measuring: CommandStages,
    parameters: Callable[[Path], int],
) -> str:
    """Train and measure what is missing; write ablation.json and ablation.md after every seed.

    Args:
        images: row of `image_starts` to the row whose image VAE it starts from.
        training: starts train_vae.py.
        measuring: starts eval_reconstruction.py.
        parameters: counts those of an export.

    Returns: the tables and claims, in markdown.
    """
    rows: dict[str, Any] = {name: {"parameters": 0, "scores": {}} for name in config.rows}
    text = ""

    def train(file: Path | None, architecture: str, seed: int, folder: Path, **start: Path) -> Path:
        options = {"architecture": architecture, "train.seed": seed, "train.folder": folder}
        record = folder.with_name(f"{folder.name}.json")
        training.run(record, "train_vae.py", {**options, **start}, config=file)
        return folder / "export"

    for seed in config.seeds:
        # Train
        exports: dict[str, Path] = {}
        for name, (architecture, start) in config.rows.items():
            folder = config.folder / name / f"video-{seed}"
            source, video = {}, config.video
            if start == "image":
                image_seed = seed if config.image_seed is None else config.image_seed
                shared = images[architecture]
                image = config.folder / "images" / f"{shared}-{image_seed}"
                source = {"init_from": train(config.image, shared, image_seed, image)}
            elif start is not None:
                source, video = {"init_from": exports[start]}, config.continued_video or video
            exports[name] = train(video, architecture, seed, folder, **source)
            rows[name]["parameters"] = parameters(exports[name])
            last = read_log(folder)[-1]  # without these scores where the config names no such clips
            rows[name]["scores"][seed] = {
                score: last[f"eval/ema/{score}"] for score in LOGGED if f"eval/ema/{score}" in last
            }

        # Measure
        for test, data in config.tests.items():
            for name, scores in _measured(config, test, data, seed, exports, measuring).items():
                row = rows.setdefault(name, {"parameters": None, "scores": {}})
                found = row["scores"].setdefault(seed, {})
                found |= {f"{test}/{score}": value for score, value in scores.items()}

        # Tabulate and judge
        found = {name: row["scores"] for name, row in rows.items()}
        claims = [judge(claim, found).sentence for claim in config.claims]
        compared = sorted({claim.score for claim in config.claims})
        result = {"kind": "ablation", "rows": rows, "claims": claims, "compared": compared}
        text = "\n".join([*map(to_markdown, ablation_tables(result)), *(f"- {c}" for c in claims)])
        write_json(config.folder / "ablation.json", result)
        write_text(config.folder / "ablation.md", text + "\n")
    return text


def _measured(
    config: AblationConfig,
    test: str,
    data: Path,
    seed: int,
    exports: Mapping[str, Path],
    commands: CommandStages,
) -> dict[str, dict[str, float]]:
    """Scores of all rows of a seed, and of trilinear down- and upsampling, on one test set."""
    training = read_options(config.video)
    clips = training.get("data") or training.get("stream") or {}
    out = config.folder / "tests" / f"{test}-{seed}"
    options = {
        "vae": tuple(f"{name}={export}" for name, export in exports.items()),
        "data": data,
        "out": out,
        **{name: clips[name] for name in ("frames", "height", "width") if name in clips},
        "batch_size": 16,
        "save_clips": 2,
        "lpips": "none",
        "rfvd": "none",
    }
    commands.run(out.with_suffix(".json"), "eval_reconstruction.py", options)
    metrics = read_json(out / "metrics.json")["metrics"]
    return {
        name: {
            "psnr": scores["psnr"],
            "ssim": scores["ssim"],
            **{
                f"ssim_{i}": value
                for i, value in enumerate(scores["ssim_by_position"]["positions"], start=1)
            },
            "ssim_margin": scores["ssim_by_position"]["margin"],
            **{f"psnr_frame_{i}": value for i, value in enumerate(scores["psnr_by_frame"])},
        }
        for name, scores in metrics.items()
        if name != "last_frames"
    }
