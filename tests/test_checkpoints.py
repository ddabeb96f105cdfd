"""Damaged checkpoints and logs of a run, and two starts of one run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from common.files import atomic_folder, read_json
from common.output_folder import lock_folder
from engine.checkpoints import find_damage, list_files
from engine.run_folder import RunFolder, read_log
from tests.builders.commands import ROOT

HOLD = """
import sys
from common.output_folder import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


class Layer(nn.Linear):
    def save_pretrained(self, folder):
        torch.save(self.state_dict(), folder / "model.bin")


@pytest.fixture
def run(tmp_path):
    """A run folder with whole checkpoints at steps 2 and 4."""
    folder = RunFolder(tmp_path / "run", Accelerator(cpu=True))
    model = folder.accelerator.prepare(Layer(2, 2))
    for step in (2, 4):
        folder.save({"step": step}, model.save_pretrained, keep=2, every=None)
    return folder


def again(folder):
    """The same folder as a rerun finds it."""
    return RunFolder(folder.path, folder.accelerator)


def truncate(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def change_a_byte(checkpoint):
    with open(checkpoint / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")


def remove(checkpoint):
    (checkpoint / "ema" / "model.bin").unlink()


def tear_the_state(checkpoint):
    text = (checkpoint / "state.json").read_text()
    (checkpoint / "state.json").write_text(text[: len(text) // 2])


def lose_the_state(checkpoint):
    (checkpoint / "state.json").unlink()


DAMAGES = {
    truncate: r"model.safetensors has \d+ bytes, not \d+",
    change_a_byte: "model.safetensors does not have the sha256",
    remove: "ema/model.bin is missing",
    tear_the_state: "state.json: not valid JSON",
    lose_the_state: "state.json: no such file",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(run, damage, caplog):
    assert again(run).latest().name == "step-00000004"
    newest = run.path / "checkpoints" / "step-00000004"
    damage(newest)
    resumed = again(run)
    assert resumed.latest().name == "step-00000002"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert f"{newest}: damaged" in record.message
    assert "going on from step-00000002" in record.message
    assert newest.exists()  # looking removes nothing
    resumed.write_identity()
    assert not newest.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named_where_no_checkpoint_is_whole(run, damage):
    for step in (2, 4):
        damage(run.path / "checkpoints" / f"step-{step:08d}")
    with pytest.raises(ValueError, match=DAMAGES[damage]) as refusal:
        again(run).latest()
    assert "step-00000002" in str(refusal.value)
    assert "step-00000004" in str(refusal.value)


def test_a_half_written_checkpoint_of_a_killed_process_goes(run):
    half = run.path / "checkpoints" / ".step-00000006.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    resumed = again(run)
    assert resumed.latest().name == "step-00000004"
    torn = run.path / "samples" / ".step-00000004.1.tmp.mp4"
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"half")
    resumed.write_identity()
    assert not half.exists()
    assert not torn.exists()


def test_all_is_on_the_disk_before_it_has_its_name_and_before_older_ones_go(
    run, tmp_path, monkeypatch
):
    """For a loss of power: checkpoints, and exports, which are made by `atomic_folder`."""
    fsync, rename, replace, rmtree = os.fsync, Path.rename, os.replace, shutil.rmtree
    synced: set[int] = set()

    def record(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def on_disk(path):
        return all(each.stat().st_ino in synced for each in (path, *Path(path).rglob("*")))

    def checked(move):
        def moved(source, target, **options):
            assert on_disk(Path(source)), source
            synced.clear()  # the folder that gets the name is to follow
            return move(source, target, **options)

        return moved

    def remove(path, **options):
        if Path(path).name.startswith("step-") and Path(path).exists():
            assert (run.path / "checkpoints").stat().st_ino in synced, path
        rmtree(path, **options)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "rename", checked(rename))
    monkeypatch.setattr(os, "replace", checked(replace))
    monkeypatch.setattr(shutil, "rmtree", remove)
    run.save({"step": 6}, Layer(2, 2).save_pretrained, keep=1, every=None)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-00000006"]
    with atomic_folder(tmp_path / "export") as temporary:
        Layer(2, 2).save_pretrained(temporary)
    assert tmp_path.stat().st_ino in synced


def test_the_state_lists_every_file(run):
    checkpoint = run.latest()
    files = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()}
    assert read_json(checkpoint / "state.json")["files"].keys() == files - {"state.json"}
    assert find_damage(checkpoint) is None
    (checkpoint / "README.md").write_text("Which people may edit.")
    assert list_files(checkpoint).keys() == files


def test_a_torn_last_line_of_the_log_is_cut_and_another_is_refused(tmp_path, caplog):
    lines = [json.dumps({"step": step, "loss": 0.1}) for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines)[:-5])
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
    assert "log.jsonl: the last line was cut off" in caplog.text
    folder = RunFolder(tmp_path, Accelerator(log_with="tensorboard", project_dir=tmp_path))
    folder.start_log(2)
    folder.write_log(3, {"loss": 0.5})
    folder.accelerator.end_training()
    assert (tmp_path / "log.jsonl").read_text().splitlines()[:2] == lines[:2]
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
    for first in (lines[0][:-3], "3", "null", '{"loss": 0.1}'):
        (tmp_path / "log.jsonl").write_text("\n".join([first, *lines[1:]]))
        with pytest.raises(ValueError, match="line 1 is not a JSON object with a step"):
            read_log(tmp_path)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path / "run"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_loser_of_two_starts_names_the_holder_until_that_one_is_dead(holder, tmp_path):
    folder = tmp_path / "run"
    with (
        pytest.raises(ValueError, match=rf"process {holder.pid} on \S+ \(since 20"),
        lock_folder(folder),
    ):
        pass
    holder.kill()
    holder.wait()
    (folder / ".clip.1.tmp.mkv").write_bytes(b"half")
    with lock_folder(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert (folder / ".lock").read_bytes() == b""


def test_a_folder_that_got_nothing_is_not_left_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path / "run"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["file", "file/below/it"])
def test_a_file_where_a_folder_is_due_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"file is a file|file: is a file"),
        lock_folder(tmp_path / where),
    ):
        pass
