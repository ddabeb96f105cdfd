"""Every command that can be interrupted: killed, started twice, continued with other inputs."""

import os
import re
import signal
from itertools import count

import pytest
import torch
from torch.testing import assert_close

from common.output_folder import lock_folder
from tests.builders.command_cases import CASES, changed
from tests.builders.processes import begin

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*clips. the distance is biased"),
]
LOCKING = [name for name, case in CASES.items() if case.locks]
REFUSALS = [(name, refusal) for name, case in CASES.items() for refusal in case.refusals]


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """Bytes are compared, and CUDA does not survive a fork."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def in_project(value, project):
    """The value with the project's folder in it."""
    if isinstance(value, str):
        return value.replace("{project}", str(project))
    if isinstance(value, list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found = {key: in_project(each, project) for key, each in items}
        return found if isinstance(value, dict) else list(found.values())
    return value


def run_until(number, whole, run, config):
    """Run a command in this process, which is killed at the file that is the `number`-th to get
    its final name: just after that, or when half of it is written."""
    moves = count(1)

    def dying(move):
        def moved(source, target, **options):
            if next(moves) == number:
                if whole:
                    move(source, target, **options)
                elif os.path.isfile(source):
                    os.truncate(source, os.path.getsize(source) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            move(source, target, **options)

        return moved

    os.replace, os.rename = dying(os.replace), dying(os.rename)
    run(config)


def assert_same(found, expected):
    """Equal names and, bit for bit, values."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):  # of tensors
            assert_close(found[name], value, rtol=0, atol=0)
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("name", CASES)
def test_killed_and_continued_equals_straight(name, project, straight, tmp_path):
    """Killed at its 1st file, continued, killed at the 3rd from there, the 6th, the 10th, ..."""
    case, out = CASES[name], tmp_path / "out"
    config, kills, number, kept = case.config(project, out), 0, 1, {}
    while True:
        process = begin(run_until, number, kills % 2 == 1, case.run, config)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        number += kills + 1
        config = changed(case.config(project, out), in_project(case.free, project))
        for path in out.glob(case.kept) if case.kept else ():
            assert kept.setdefault(path, path.stat().st_ino) == path.stat().st_ino
    assert kills > 1
    assert case.kept is None or kept
    for path, inode in kept.items():
        assert not path.exists() or path.stat().st_ino == inode, f"{path} was made again"
    assert_same(case.contents(out), case.contents(straight(name)))
    assert not (case.locks and list(out.rglob(".*.tmp*")))
    case.run(config)  # changes nothing
    assert_same(case.contents(out), case.contents(straight(name)))


@pytest.mark.parametrize("name", LOCKING)
def test_a_second_start_is_refused_by_the_name_of_the_holder(name, project, tmp_path):
    with (
        lock_folder(tmp_path),
        pytest.raises(ValueError, match=rf"{tmp_path}: process {os.getpid()} on \S+ \(since 20"),
    ):
        CASES[name].run(CASES[name].config(project, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(("name", "refusal"), REFUSALS)
def test_another_input_or_setting_is_refused_with_the_difference(name, refusal, project, straight):
    case, out = CASES[name], straight(name)
    before = case.contents(out)
    config = changed(case.config(project, out), in_project(dict(refusal.changes), project))
    says = refusal.says.replace("{project}", re.escape(str(project)))
    with pytest.raises(ValueError, match=says):
        case.run(config)
    assert_same(case.contents(out), before)
