"""Scripts run in this process, which has torch loaded already: seconds instead of a new process."""

import runpy
import sys
from pathlib import Path

import pytest

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
