"""Warnings, signals and mistakes as they show under each launcher."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.builders.packed import pack
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
CODES = {"python": 143, "torchrun": 1, "accelerate": -15}
LAUNCHERS = {
    "python": [],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"],
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
def test_sigterm_to_the_launcher_saves_and_leaves_no_process(launcher, tmp_path):
    shards = pack(tmp_path / "data" / "shards", [12, 14, 16, 18])
    config = video_run(tmp_path / "run", shards, steps=100_000, save_every=100_000)
    process = subprocess.Popen(
        [sys.executable, *LAUNCHERS[launcher], *as_command(config, tmp_path)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)  # until the trainer, too, has closed its end
    assert "stopped by signal 15" in error
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*/state.json"))) == 1
    assert process.returncode == CODES[launcher]
