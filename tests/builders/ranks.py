"""Run jobs one by one, each in processes of its own: `python -m tests.builders.ranks FILE`.

FILE holds pickled jobs: how many processes, what a launcher would set, the function and its config.
The processes are forked from this one, which has imported all that they need.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

from common.files import write_json
from engine import fsdp
from engine.accelerator import training_accelerator
from engine.train import Trainer
from latte import Latte
from scripts import train_vae  # noqa: F401
from tests.builders.commands import ROOT
from tests.builders.processes import run_ranks
from tests.builders.tiny_latte import TINY


def run_jobs(folder: Path, jobs: list) -> None:
    """Run `jobs` in a new process, which forks those of each; `folder` gets their file."""
    file = folder / "jobs.pickle"
    file.write_bytes(pickle.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-m", "tests.builders.ranks", str(file)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def weigh(config):
    """How many of a model's values, and of its average's, each process holds."""
    accelerator = training_accelerator(config)
    trainer = Trainer(config, config, accelerator, Latte(TINY))
    modules = {"weights": trainer.model, "average": trainer.ema.model}
    held = {
        name: sum(fsdp.local(p).numel() for p in module.parameters())
        for name, module in modules.items()
    }
    write_json(f"{config.folder}/{accelerator.process_index}.json", held)


if __name__ == "__main__":
    for count, environment, function, config in pickle.loads(Path(sys.argv[1]).read_bytes()):
        os.environ |= environment
        run_ranks(count, function, config)
