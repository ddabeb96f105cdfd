"""Every command that can be interrupted: killed, started twice, continued with other inputs."""

import os
import re
import signal

import pytest
import torch

from common.cli import Stopped
from common.output_folder import lock_folder
from engine.run_folder import RunFolder
from tests.builders.command_cases import CASES, assert_same, changed, in_project, run_until
from tests.builders.processes import begin

pytestmark = pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
TRAINING = [name for name in CASES if name.startswith("train")]
LOCKING = [name for name, case in CASES.items() if case.locks]
REFUSALS = [(name, refusal) for name, case in CASES.items() for refusal in case.refusals]


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """Bytes are compared, and CUDA does not survive a fork."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


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
    assert kills > 1 or case.at_once
    assert case.kept is None or case.at_once or kept
    for path, inode in kept.items():
        assert not path.exists() or path.stat().st_ino == inode, f"{path} was made again"
    assert_same(case.contents(out), case.contents(straight(name)))
    assert not (case.locks and list(out.rglob(".*.tmp*")))
    case.run(config)  # changes nothing
    assert_same(case.contents(out), case.contents(straight(name)))


def run_until_signal(run, config):
    """Run a command in this process, which gets SIGTERM after its second step."""
    write_log = RunFolder.write_log

    def write(folder, step, values):
        write_log(folder, step, values)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    RunFolder.write_log = write
    with pytest.raises(Stopped, match="at step 3 of") as stopped:
        run(config)
    os._exit(stopped.value.code)


@pytest.mark.parametrize("name", TRAINING)
def test_stopped_by_a_signal_between_checkpoints_equals_straight(name, project, straight, tmp_path):
    case, config = CASES[name], CASES[name].config(project, tmp_path)
    process = begin(run_until_signal, case.run, config)
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    assert (tmp_path / "checkpoints" / "step-00000003").exists()
    assert not (tmp_path / "export").exists()
    case.run(config)
    assert_same(case.contents(tmp_path), case.contents(straight(name)))


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
