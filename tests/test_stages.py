"""Stages of a longer command: done once, and refused where settings or inputs have changed."""

import pytest

from common.stages import run_stage


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
    assert stage() == done
    assert len(calls) == 1
    with pytest.raises(ValueError, match="steps was 2, now 3"):
        stage(steps=3)
    weights.write_bytes(b"new")
    with pytest.raises(ValueError, match=rf"{weights} was .*\(sha256 .*\), now .*\(sha256"):
        stage()
    assert len(calls) == 1
    record.unlink()
    stage()
    assert len(calls) == 2


def test_a_stage_that_fails_leaves_no_record(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_stage(tmp_path / "a.json", lambda: 1 // 0, settings={})
    assert not (tmp_path / "a.json").exists()
