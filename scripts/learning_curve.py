"""What Latte has learned after parts of its training, over several seeds."""

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml

from common.cli import main
from common.config import Config
from common.files import atomic_path, read_json, write_json
from common.launch import call
from common.output_folder import lock_folder
from common.stages import run_stage
from eval.features.classifier import ClipClassifier
from eval.report.demo import DemoSet, demo_protocol, demo_scores, generated_set, packed_set
from latte.samplers import SamplerConfig

SCRIPTS = Path(__file__).parent
SCORES = {"fvd_demo": 2, "is_demo": 2, "recognised": 3}
"""Scores of the table, with their decimals."""
WEIGHTS = ("raw", "ema")


@dataclass(frozen=True, kw_only=True)
class LearningCurve(Config):
    """Train one config of train_latte.py with several seeds, and score samples of the raw and of
    the averaged weights at parts of the training, with a classifier of the data's own classes.

    Also compares a sampler of few steps with one of many. Run it again to go on where it stopped.
    """

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
    percents: tuple[int, ...] = (0, 25, 50, 100)
    """Parts of the training after which to sample, in percent of its steps."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, data order and noise, and of the samples."""
    full: SamplerConfig = field(default_factory=SamplerConfig)
    """Sampler of many steps, for the averaged weights at the end."""
    fast: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(method="dpm_solver", steps=25)
    )
    """Sampler of few steps, compared with it."""
    launcher: str = sys.executable
    """What starts train_latte.py and sample.py, such as "accelerate launch"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or not self.percents:
            raise ValueError("name at least one seed and one percentage")
        if min(self.percents) < 0 or max(self.percents) != 100:
            raise ValueError(f"percents={self.percents} must be from 0 to 100, and end with 100")
        for path in (self.train, self.samples):
            if not path.is_file():
                raise ValueError(f"{path}: no such config file")


def run(config: LearningCurve) -> None:
    """Train and sample what is missing, then write learning_curve.json and learning_curve.md."""
    with lock_folder(config.folder):
        _run(config)


def _run(config: LearningCurve) -> None:
    classifier = ClipClassifier.from_pretrained(config.classifier)
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    steps = _steps(config)
    results: dict[str, Any] = {"protocol": {}, "scores": {}}
    for seed in config.seeds:
        folder = config.folder / f"seed-{seed}"
        _train(config, seed, folder / "run", math.gcd(*steps.values()))
        parts = _samples(config, seed, folder, steps)
        scores, results["protocol"] = _scores(config, classifier, parts)
        for name, values in scores.items():
            results["scores"].setdefault(name, {})[seed] = values
        results["protocol"]["steps"] = steps
        write_json(config.folder / "learning_curve.json", results)
        with atomic_path(config.folder / "learning_curve.md") as temporary:
            temporary.write_text(_report(config, results))
    print(_report(config, results), end="")


def _steps(config: LearningCurve) -> dict[int, int]:
    """The step of each percentage."""
    total = yaml.safe_load(config.train.read_text())["train"]["steps"]
    if broken := [percent for percent in config.percents if total * percent % 100]:
        raise ValueError(
            f"{config.train}: {broken[0]} % of its {total} steps is no whole number. Choose other "
            "percents."
        )
    return {percent: total * percent // 100 for percent in config.percents}


def _latents(config: LearningCurve) -> Path:
    """The manifest of the latents that are trained on."""
    return Path(yaml.safe_load(config.train.read_text())["latents"]) / "manifest.json"


def _train(config: LearningCurve, seed: int, folder: Path, every: int) -> None:
    """Train without previews, keeping a checkpoint at each percentage."""
    options = {
        "--train.seed": seed,
        "--train.folder": folder,
        "--train.save_every": every,
        "--train.keep_every": every,
        "--vae": "null",
    }
    record, latents = folder.with_name("run.json"), _latents(config)
    _stage(config, record, "train_latte.py", config.train, options, [latents])


def _samples(
    config: LearningCurve, seed: int, folder: Path, steps: dict[int, int]
) -> dict[str, Path]:
    """Folders of finished samples, by what they are of."""
    parts = {}

    def add(name: str, step: int, options: dict[str, Any]) -> None:
        checkpoint = folder / "run" / "checkpoints" / f"step-{step:08d}"
        out = parts[name] = folder / name.replace(" ", "-")
        given = {"--latte": checkpoint, "--out": out, "--seed": seed, **options}
        weights = [checkpoint / "model.safetensors", checkpoint / "ema" / "model.safetensors"]
        record = out.with_name(f"{out.name}.json")
        _stage(config, record, "sample.py", config.samples, given, weights)

    for percent, step in steps.items():
        if percent == 0:  # no weights differ yet, and every new model predicts the same
            add("0 new", steps[100], {"--untrained": "true"})
            continue
        for weights in WEIGHTS:
            add(f"{percent} {weights}", step, {"--weights": weights})
    for name in ("full", "fast"):
        sampler = {f"--sampler.{k}": v for k, v in asdict(getattr(config, name)).items()}
        add(name, steps[100], sampler)
    return parts


def _scores(
    config: LearningCurve, classifier: ClipClassifier, parts: dict[str, Path]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Scores of each part, and what they were measured with."""
    first = next(iter(parts.values()))
    clip = read_json(first / "samples.json")["clips"][0]["file"]
    protocol = demo_protocol(first / clip)
    sets: dict[str, DemoSet] = {k: generated_set(path, protocol) for k, path in parts.items()}
    reference = packed_set(Path(config.reference), protocol)
    scores = demo_scores(classifier, reference, sets)
    return scores, {
        "clips": len(next(iter(sets.values())).source),
        "frames": protocol.frames,
        "reference_clips": len(reference.source),
        "classes": classifier.config.num_classes,
        "samplers": {"full": asdict(config.full), "fast": asdict(config.fast)},
    }


def _report(config: LearningCurve, results: dict[str, Any]) -> str:
    """The two tables and what they say, in markdown."""
    protocol, scores = results["protocol"], results["scores"]
    names = [name for name in scores if name not in ("full", "fast")]
    seeds = len(next(iter(scores.values())))
    last, chance = scores["100 ema"].values(), 1 / protocol["classes"]
    least = min(values["recognised"] for values in last)
    ratio = _mean(scores["fast"], "fvd_demo") / _mean(scores["full"], "fvd_demo")
    samplers = {f"{s.method}, {s.steps} steps": n for n, s in _samplers(config).items()}
    return "\n".join(
        [
            f"{protocol['clips']} clips a row and seed, {seeds} seeds (mean ± standard deviation), "
            f"against {protocol['reference_clips']} training clips.",
            "",
            *_table("% of training, weights", {name: name for name in names}, scores),
            "",
            f"Class recognised: {100 * _mean(scores['100 ema'], 'recognised'):.0f} % on the mean, "
            f"{100 * least:.0f} % with the worst seed, by chance {100 * chance:.0f} %: a margin of "
            f"at least {100 * (least - chance):.0f} points.",
            "",
            *_table("averaged weights, sampler", samplers, scores),
            "",
            f"The sampler of few steps has {ratio:.3f} times the fvd_demo of the one of many.",
            "",
        ]
    )


def _samplers(config: LearningCurve) -> dict[str, SamplerConfig]:
    return {"full": config.full, "fast": config.fast}


def _table(title: str, rows: dict[str, str], scores: dict[str, Any]) -> list[str]:
    lines = [f"| {title} | " + " | ".join(SCORES) + " |", "|---" * (1 + len(SCORES)) + "|"]
    for shown, name in rows.items():
        runs = scores[name].values()
        cells = [_cell([run[score] for run in runs], digits) for score, digits in SCORES.items()]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return lines


def _cell(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _mean(runs: dict[int, dict[str, float]], score: str) -> float:
    return mean(values[score] for values in runs.values())


def _stage(
    config: LearningCurve,
    record: Path,
    script: str,
    file: Path,
    options: dict[str, Any],
    inputs: Sequence[Path],
) -> None:
    """Run a command unless its record says that it was done, with these settings and inputs."""
    flags = [f"{name}={_flag(value)}" for name, value in options.items()]
    command = [*shlex.split(config.launcher), str(SCRIPTS / script), "--config", str(file), *flags]
    settings = {"options": {k: _flag(v) for k, v in options.items()}, "config": file.read_text()}
    run_stage(record, lambda: call(command), settings=settings, inputs=inputs)


def _flag(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    main(LearningCurve, run)
