"""Warnings, signals and mistakes as they show under each launcher."""

import os
import signal
import subprocess
import sys

import pytest

from tests.builders.training_runs import ROOT, as_command, video_run

WARNS = """
import warnings
from dataclasses import dataclass
from common.cli import main
from common.config import Config

@dataclass(frozen=True, kw_only=True)
class Nothing(Config):
    "Warn."

main(Nothing, lambda config: [warnings.warn("two  clips\\nare few") for _ in range(3)])
"""
ENDS = {
    "python": (signal.SIGINT, 128 + signal.SIGINT),
    "torchrun": (signal.SIGTERM, 1),
    "accelerate": (signal.SIGTERM, -signal.SIGTERM),
}
"""The signal that each gets, and its exit code then."""
LAUNCHERS = {
    "python": [],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "configs" / "accelerate" / "default.yaml"),
    ],
}


def test_a_warning_is_one_line_of_the_main_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WARNS)
    for rank, shown in {"0": "warning: two clips are few\n", "1": ""}.items():
        done = subprocess.run(
            [sys.executable, str(script)],
            env={"PYTHONPATH": str(ROOT), "RANK": rank},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == shown


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_to_the_launcher_saves_and_leaves_no_process(launcher, project, tmp_path):
    number, code = ENDS[launcher]
    shards = project / "shards"
    config = video_run(tmp_path / "run", shards, steps=100_000, save_every=100_000)
    process = subprocess.Popen(
        [sys.executable, *LAUNCHERS[launcher], *as_command(config, tmp_path)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    shown = ""
    while "loss=" not in shown:  # in the progress bar
        part = process.stderr.read(1)
        assert part, shown  # it has ended
        shown += part
    process.send_signal(number)
    _, error = process.communicate()  # until the trainer, too, has closed its end
    assert f"stopped by signal {number:d}" in error
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*/state.json"))) == 1
    assert process.returncode == code
