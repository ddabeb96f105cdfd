"""Scripts run in this process, which has torch loaded already: seconds instead of a new process."""

import importlib
import runpy
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from common import stages
from common.cli import main, parse
from common.config import Config

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


def run_script(name: str, *arguments: object, cwd: Path | None = None) -> int:
    """Exit code of `python scripts/NAME ARGUMENTS`; what it prints is this process's output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPTS / name), *map(str, arguments)])
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def exit_code(command: type, run: Callable[[Any], Any]) -> int:
    """Exit code of `main`."""
    with pytest.raises(SystemExit) as ended:
        main(command, run)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def run_stage_here(command: Sequence[str]) -> int:
    """In place of `common.stages.call`: the command runs in this process."""
    module = importlib.import_module(f"scripts.{Path(command[1]).stem}")
    kinds = (each for each in vars(module).values() if isinstance(each, type))
    (kind,) = (k for k in kinds if issubclass(k, Config) and k.__module__ == module.__name__)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*clips: the distance is biased")
        warnings.filterwarnings("ignore", ".* clips have the features of another")
        warnings.filterwarnings("ignore", ".*use equal numbers")
        module.run(parse(kind, list(command[2:])))
    return 0


def with_stages_here(run: Callable[[Any], object], config: Any) -> None:
    """An experiment whose commands run in the process of the experiment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "call", run_stage_here)
        run(config)
