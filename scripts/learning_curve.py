"""What Latte has learned after parts of its training, over several seeds."""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.cli import main
from common.output_folder import lock_folder
from common.stages import CommandStages
from eval.experiments.learning_curve import LearningCurveConfig, run_learning_curve
from latte.samplers import SamplerConfig

SCRIPTS = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class LearningCurve(LearningCurveConfig):
    """Train Latte with several seeds and score its samples after parts of the training.

    Samples of the raw and of the averaged weights are scored with a classifier of the data's own
    classes; a sampler of few steps is compared with one of many. Run it again to go on where it
    stopped.
    """

    full: SamplerConfig = field(default_factory=SamplerConfig)
    """Sampler of many steps, for the averaged weights at the end."""
    fast: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(method="dpm_solver", steps=25)
    )
    """Sampler of few steps, compared with it."""
    launcher: str = sys.executable
    """What starts train_latte.py and sample.py, such as "accelerate launch"."""


def run(config: LearningCurve) -> None:
    """Train, sample and score what is missing, then write learning_curve.json and .md."""
    samplers = {"full": asdict(config.full), "fast": asdict(config.fast)}
    commands = CommandStages(scripts=SCRIPTS, launcher=config.launcher)
    with lock_folder(config.folder):
        # one process measures, whatever trains
        scoring = CommandStages(scripts=SCRIPTS)
        print(run_learning_curve(config, samplers, commands, scoring), end="")


if __name__ == "__main__":
    main(LearningCurve, run)
