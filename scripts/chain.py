"""From VAEs to a generator's score in one command: which latents generate well?"""

import sys
from dataclasses import dataclass
from pathlib import Path

from common.cli import main
from common.output_folder import lock_folder
from common.stages import CommandStages
from eval.experiments.chain import ChainConfig, run_chain
from vae.registry import load_vae


@dataclass(frozen=True, kw_only=True)
class Chain(ChainConfig):
    """Take VAEs through the whole pipeline on one budget: train, cache, card, Latte, sample, FVD.

    Run it again to go on where it stopped. The table has mean and standard deviation over the
    seeds, and how each measure of the card ranks with the generator's score.
    """

    launcher: str = sys.executable
    """What starts the commands, such as "accelerate launch"."""


def run(config: Chain) -> None:
    """Check the VAEs that are given, then run what is missing."""
    data = config.clips["data"]
    for row in config.rows:
        if row.vae is not None:
            vae = load_vae(row.vae)
            vae.config.latent_shape(data["frames"], data["height"], data["width"])
    with lock_folder(config.folder):
        scripts = Path(__file__).parent
        run_chain(config, CommandStages(scripts=scripts, launcher=config.launcher))
    print((config.folder / "chain.md").read_text(), end="")


if __name__ == "__main__":
    main(Chain, run)
