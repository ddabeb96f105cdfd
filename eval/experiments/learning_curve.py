"""The learning curve: what Latte has learned after parts of its training, over several seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

from annotated_types import Ge

from common.config import Config
from common.files import read_options, write_json, write_text
from common.stages import CommandStages
from eval.experiments.experiment_scores import FRAMES, ExperimentScores, count_samples
from eval.report.items import Column
from eval.report.tables import to_markdown
from eval.results.experiment_tables import seed_table

SCORES = {
    name: Column(name=name, decimals=decimals)
    for name, decimals in {"fvd_demo": 2, "is_demo": 2, "recognized": 3}.items()
}
WEIGHTS = ("raw", "ema")


@dataclass(frozen=True, kw_only=True)
class LearningCurveConfig(Config):
    """What is trained, sampled and compared with what."""

    folder: Path
    """Folder of the runs, the samples, learning_curve.json and learning_curve.md."""
    train: Path
    """Config of train_latte.py, class-conditional; seed, folder and checkpoints are set here."""
    samples: Path
    """Config of sample.py; checkpoint, folder and seed are set here."""
    classifier: str
    """Export folder of train_classifier, for the scores."""
    reference: str
    """Shards of the clips that Latte was trained on: what samples are compared with."""
    percents: tuple[Annotated[int, Ge(0)], ...] = (0, 25, 50, 100)
    """Parts of the training after which to sample, in percent of its steps."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, data order and noise, and of the samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or not self.percents:
            raise ValueError("name at least one seed and one percentage")
        if max(self.percents) != 100:
            raise ValueError(f"percents={self.percents} must be from 0 to 100, and end with 100")
        for path in (self.train, self.samples):
            if not path.is_file():
                raise ValueError(f"{path}: no such config file")


def run_learning_curve(
    config: LearningCurveConfig,
    samplers: Mapping[str, Mapping[str, Any]],
    commands: CommandStages,
    scoring: CommandStages,
) -> str:
    """Train, sample and score what is missing; write learning_curve.json and .md after every seed.

    Args:
        samplers: options of the samplers `full` and `fast` for the averaged weights at the end.
        commands: starts train_latte.py and sample.py.
        scoring: starts the commands that measure.

    Returns: the tables, in markdown.
    """
    steps = _steps(config)
    text = ""
    results: dict[str, Any] = {"protocol": {}, "scores": {}}
    for seed in config.seeds:
        folder = config.folder / f"seed-{seed}"

        # Train without previews, keeping a checkpoint at each percentage
        every = math.gcd(*steps.values())
        options = {
            "train.seed": seed,
            "train.folder": folder / "run",
            "train.save_every": every,
            "train.keep_every": every,
            "vae": None,
        }
        commands.run(folder / "run.json", "train_latte.py", options, config=config.train)

        # Sample
        parts = _parts(samplers, steps)
        clips = {name: folder / name.replace(" ", "-") for name in parts}
        for name, (step, options) in parts.items():
            checkpoint = folder / "run" / "checkpoints" / f"step-{step:08d}"
            commands.run(
                folder / f"{clips[name].name}.json",
                "sample.py",
                {"latte": checkpoint, "out": clips[name], "seed": seed, **options},
                config=config.samples,
            )

        # Score
        num_clips, size = count_samples(next(iter(clips.values())))
        scores = ExperimentScores(
            commands=scoring,
            records=folder / "scores" / "records",
            results=folder / "scores",
            classifier=Path(config.classifier),
            reference=Path(config.reference),
            num_clips=num_clips,
            size=size,
        )
        for name, out in clips.items():
            scored = scores.score(out.name, out)
            results["scores"].setdefault(name, {})[seed] = scored.summary
            results["protocol"] = {
                "clips": num_clips,
                "frames": FRAMES,
                "reference_clips": scored.fvd["protocol"]["clips_real"],
                "classes": scored.inception["classes"],
                "samplers": samplers,
                "steps": steps,
            }
        write_json(config.folder / "learning_curve.json", results)
        text = _report(samplers, results)
        write_text(config.folder / "learning_curve.md", text)
    return text


def _steps(config: LearningCurveConfig) -> dict[int, int]:
    """The step of each percentage."""
    train = read_options(config.train).get("train")
    total = train.get("steps") if isinstance(train, dict) else None
    if not isinstance(total, int):
        raise ValueError(f"{config.train}: train.steps={total} must be a number of steps")
    if broken := [percent for percent in config.percents if total * percent % 100]:
        raise ValueError(
            f"{config.train}: {broken[0]} % of its {total} steps is not a whole number of steps. "
            "Choose other percents."
        )
    return {percent: total * percent // 100 for percent in config.percents}


def _parts(
    samplers: Mapping[str, Mapping[str, Any]], steps: dict[int, int]
) -> dict[str, tuple[int, dict[str, Any]]]:
    """What is sampled: name to the step of the checkpoint and options of sample.py."""
    parts: dict[str, tuple[int, dict[str, Any]]] = {}
    for percent, step in steps.items():
        if percent == 0:  # no weights differ yet, and every new model predicts the same
            parts["0 new"] = steps[100], {"untrained": True}
            continue
        for weights in WEIGHTS:
            parts[f"{percent} {weights}"] = step, {"weights": weights}
    for name, sampler in samplers.items():
        parts[name] = steps[100], {f"sampler.{k}": v for k, v in sampler.items()}
    return parts


def _report(samplers: Mapping[str, Mapping[str, Any]], results: dict[str, Any]) -> str:
    """The two tables and what they say, in markdown."""
    protocol = results["protocol"]
    scores = {name: list(seeds.values()) for name, seeds in results["scores"].items()}
    last, chance = [run["recognized"] for run in scores["100 ema"]], 1 / protocol["classes"]
    full, fast = (mean(run["fvd_demo"] for run in scores[name]) for name in ("full", "fast"))
    training = seed_table(
        "What is learned over the training",
        "% of training, weights",
        SCORES,
        {name: runs for name, runs in scores.items() if name not in samplers},
        f"{protocol['clips']} clips a row and seed, {len(last)} seeds (mean ± standard deviation), "
        f"against {protocol['reference_clips']} training clips. Class recognized at the end, by "
        f"averaged weights: {100 * mean(last):.0f} % on the mean, {100 * min(last):.0f} % with the "
        f"worst seed, by chance {100 * chance:.0f} %: a margin of at least "
        f"{100 * (min(last) - chance):.0f} points.",
    )
    sampling = seed_table(
        "Samplers, with the averaged weights at the end",
        "sampler",
        SCORES,
        {
            f"{sampler['method']}, {sampler['steps']} steps": scores[name]
            for name, sampler in samplers.items()
        },
        f"The sampler of few steps has {fast / full:.3f} times the fvd_demo of the one of many.",
    )
    return "\n".join(map(to_markdown, (training, sampling)))
