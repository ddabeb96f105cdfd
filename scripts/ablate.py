"""Train VAEs on one budget, measure them on test sets, tabulate what they reach, judge claims."""

import sys
from dataclasses import dataclass
from pathlib import Path

from common.cli import main
from common.output_folder import lock_folder
from common.stages import CommandStages
from eval.experiments.ablation import AblationConfig, run_ablation
from vae.config import PRESETS
from vae.registry import ARCHITECTURES, OTHERS, load_vae

SCRIPTS = Path(__file__).parent
IMAGE_FIELDS = ("branches", "dim", "tmpe")
"""What of a row its image VAE depends on."""


@dataclass(frozen=True, kw_only=True)
class Ablate(AblationConfig):
    """Train every row of the paper's ablation with the same data, steps and seeds, and compare.

    Run it again to go on where it stopped. Tables have the mean and the standard deviation over the
    seeds, of the averaged weights, on held-out clips (supplement, Table 5), on test sets, or both.
    """

    launcher: str = sys.executable
    """What starts train_vae.py, such as "accelerate launch"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for row in (*self.architectures, *self.image_starts, *self.continued):
            if row not in ARCHITECTURES:
                raise ValueError(
                    f"unknown architecture {row!r}: use some of {', '.join(ARCHITECTURES)}"
                )
        if others := [row for row in self.image_starts if row in OTHERS]:
            raise ValueError(
                f"image_starts={others}: these models cannot be inflated from an image VAE; name "
                "them in architectures"
            )

    @property
    def images(self) -> dict[str, str]:
        """The row whose image VAE each row of `image_starts` takes: the first that needs the
        same."""
        kinds = {row: [PRESETS[row].get(n) for n in IMAGE_FIELDS] for row in self.image_starts}
        return {row: next(r for r, k in kinds.items() if k == kind) for row, kind in kinds.items()}


def run(config: Ablate) -> None:
    """Train and measure what is missing, then write ablation.json and ablation.md."""
    training = CommandStages(scripts=SCRIPTS, launcher=config.launcher)
    with lock_folder(config.folder):
        print(
            run_ablation(
                config,
                config.images,
                training,
                CommandStages(scripts=SCRIPTS),
                lambda export: sum(p.numel() for p in load_vae(export).parameters()),
            )
        )


if __name__ == "__main__":
    main(Ablate, run)
