"""One thread per process: the tests' tensors are tiny, and several processes share the cores.

Ordinary tests run on the CPU even where there is a GPU; `pytest -m gpu` runs those that need one.
"""

import os
import subprocess
import sys

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "not gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            ""  # torch looks for devices when the first is asked for
        )


@pytest.fixture(scope="session", autouse=True)
def server():
    """What the tests' processes come from; what they print is then their test's."""
    if processes := sys.modules.get("tests.builders.processes"):  # some test needs it
        processes.start_server()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """All that the commands read, small; not to be changed."""
    from tests.builders.tiny_project import make_project  # other tests need not import it all

    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def straight(project, tmp_path_factory):
    """The folder that a command has filled in one go, by the name of its case."""
    from tests.builders.command_cases import CASES

    folders = {}

    def run(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("straight") / name.replace(" ", "_")
            CASES[name].run(CASES[name].config(project, folders[name]))
        return folders[name]

    return run
