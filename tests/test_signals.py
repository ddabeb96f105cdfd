"""Warnings, signals and mistakes as they show under each launcher."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

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
