"""What the demo measures: generated clips beside held-out, reconstructed and noisy ones."""

from pathlib import Path
from typing import Any

from common.files import read_json
from common.stages import CommandStages
from eval.experiments.experiment_scores import FRAMES, ExperimentScores, count_samples

NOISE = 0.6
NEAREST_STRIDE = 8  # frames between the training clips that generated ones are compared with


def measure_demo(run: Path, end: str, commands: CommandStages) -> dict[str, Any]:
    """Score as many clips of every set as the smallest has; all figures of the demo, for JSON.

    Args:
        run: folder of the demo, in which all stages before are done.
        end: of the names of what depends on what Latte learns.
        commands: starts the commands, and knows what the stages before cost.
    """
    samples, untrained = run / f"samples{end}", run / f"untrained{end}"
    generated, size = count_samples(samples)
    saved = read_json(run / "reconstruction" / "metrics.json")
    scores = ExperimentScores(
        commands=commands,
        records=run / "stages",
        results=run / "scores",
        classifier=run / "classifier" / "export",
        reference=run / "shards" / "train",
        num_clips=min(generated, len(saved["clips"])),
        size=size,
    )
    test, real = run / "shards" / "test", {"fake_is_real": True}
    nearest = {"held_out": test, "nearest_stride": NEAREST_STRIDE}
    found = {
        "generated": scores.score(f"generated{end}", samples, {}, nearest),
        "held-out clips": scores.score("held-out", test, real),
        "held-out clips through the VAE": scores.score("through-vae", run / "reconstruction/vae"),
        "held-out clips with noise": scores.score("noise", test, {**real, "noise_fake": NOISE}),
        "untrained generator": scores.score(untrained.name, untrained),
    }
    costs = ("seconds", "cpu_seconds", "memory_gb")
    return {
        "scores": {name: scored.summary for name, scored in found.items()},
        "recognized_by_class": found["generated"].inception["accuracy_by_class"],
        "memorization": found["generated"].fvd["memorization"],
        "classifier": read_json(run / "classifier" / "metrics.json")["test"],
        "protocol": {"frames": FRAMES, "noise": NOISE, "reference": "training clips"},
        "reconstruction": saved["metrics"],
        "stages": {n: {k: record[k] for k in costs} for n, record in commands.done.items()},
    }
