"""Stages of a longer command: done once, and refused where settings or inputs have changed."""

import os
import signal
import sys

import numpy as np
import pytest

from common import measure, stages
from common.cli import Stopped
from common.stages import CommandStages, run_stage


def test_a_stage_is_done_once_with_the_same_settings_and_inputs(tmp_path):
    record, weights = tmp_path / "stages" / "train.json", tmp_path / "weights"
    calls = []

    def work():
        calls.append(1)
        return 2_000_000_000

    def stage(**settings):
        return run_stage(record, work, settings={"steps": 2, **settings}, inputs=[weights])

    with pytest.raises(ValueError, match="weights: no such file"):
        stage()
    weights.write_bytes(b"old")
    done = stage()
    assert done["memory_gb"] == 2
    assert 0 <= done["cpu_seconds"] <= 60
    assert stage() == done
    assert len(calls) == 1
    with pytest.raises(ValueError, match="steps was 2, now 3"):
        stage(steps=3)
    weights.write_bytes(b"new")
    with pytest.raises(ValueError, match=rf"{weights} was .*\(sha256 .*now .*\(sha256"):
        stage()
    assert len(calls) == 1
    record.unlink()
    stage()
    assert len(calls) == 2


def test_a_stage_that_fails_leaves_no_record(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_stage(tmp_path / "a.json", lambda: 1 // 0, settings={})
    assert not (tmp_path / "a.json").exists()


def test_a_command_is_done_again_with_nothing_else_in_what_it_reads(tmp_path, monkeypatch):
    """Whatever the option that names it: a folder or file, of the config or of the options."""
    monkeypatch.setattr(stages, "call", lambda command: 0)
    monkeypatch.chdir(tmp_path)
    read = [
        *("shards/index.json", "images/manifest.json", "vae/model.safetensors", "a-0.tar"),
        *("a-1.tar", "latte/ema/model.safetensors", "clips/samples.json", "vae/training.json"),
    ]
    written = ["run/identity.json", "out/identity.json"]
    for file in (*read, *written):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_text("old")
    config = tmp_path / "config.yaml"
    config.write_text(
        "{data: {folder: shards}, images: {latents: images}, train: {folder: run}, "
        "stream: {urls: ['a-{0..1}.tar', 'pipe:cat a']}, unset: null, latte: other}"
    )
    options = {"vae": ("ours=cogvideox:vae",), "latte": tmp_path / "latte", "fake": "clips"}

    def run():
        given = {**options, "out": "out"}
        CommandStages(scripts=tmp_path).run(tmp_path / "record.json", "x.py", given, config=config)

    run()
    for file in written:
        (tmp_path / file).write_text("new")
        run()
    for file in read:
        (tmp_path / file).write_text("new")
        with pytest.raises(ValueError, match=rf"{file} was .*\(sha256 .*now .*\(sha256"):
            run()
        (tmp_path / file).write_text("old")
    run()


@pytest.mark.parametrize("launcher", ["no-such-launcher", "/etc/hostname"])
def test_a_launcher_that_cannot_be_started_is_named(tmp_path, launcher):
    with pytest.raises(ValueError, match=f"{launcher}: cannot be started"):
        CommandStages(scripts=tmp_path, launcher=launcher).run(tmp_path / "a.json", "x.py")


@pytest.mark.parametrize("code", [1, 128 + signal.SIGTERM])
def test_a_launcher_that_was_stopped_is_no_mistake_whatever_code_it_ends_with(tmp_path, code):
    """torchrun ends with 1 when a signal stops it."""
    script = tmp_path / "launcher.py"
    script.write_text(
        "import os, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"  # as if someone stopped the whole command
        "time.sleep(60)\n"
    )
    with pytest.raises(Stopped, match=r"was stopped\. Run the same command to go on") as stopped:
        stages.call([sys.executable, str(script)])
    assert stopped.value.code == 128 + signal.SIGTERM
    script.write_text("raise SystemExit(1)\n")
    with pytest.raises(ValueError, match="ended with exit code 1"):
        stages.call([sys.executable, str(script)])


@pytest.mark.skipif(not os.access(measure.CLEAR, os.W_OK), reason="no high-water mark to reset")
def test_a_commands_peak_memory_is_its_own():
    held = np.ones(50_000_000)  # 400 MB
    del held
    before = measure.peak_memory_bytes()
    assert stages.call([sys.executable, "-c", "pass"]) < before - 300_000_000
