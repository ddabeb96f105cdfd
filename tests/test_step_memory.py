"""The memory of a step, estimated without data: in closed form, and beside a step that is run."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from common.measure import LiveMemory, max_rss_bytes
from engine.memory import estimate_memory, measure_step_memory, measured_memory
from engine.run_folder import read_log
from tests.builders.toy_trainer import toy_trainer


def test_live_memory_in_closed_form():
    x = torch.randn(1000, requires_grad=True)  # 4000 bytes
    with LiveMemory() as memory:
        y = x
        for _ in range(5):
            y = torch.tanh(y)  # each output is kept for the backward pass
        assert memory.now == 5 * 4000
        y = y.view(10, 100).sum()  # a view takes nothing
        assert memory.now == 5 * 4000 + 4
        y.backward()  # and its gradients
        assert memory.peak == 6 * 4000 + 8
        del y
        assert memory.now == 4000  # the gradient
    assert x.grad is not None


def test_memory_is_told_in_billions_of_bytes(tmp_path, monkeypatch):
    for module in ("engine.train", "engine.memory"):
        monkeypatch.setattr(f"{module}.peak_memory_bytes", lambda device: 2_500_000_000)
    trainer, loss = toy_trainer(tmp_path, steps=1)
    assert " 2.5 GB at most" in measured_memory(trainer, video(), loss)
    trainer.run(lambda start: iter([video()]), loss)
    assert read_log(tmp_path)[-1]["memory_gb"] == 2.5


@pytest.mark.parametrize(("system", "expected"), [("linux", 3072), ("darwin", 3)])
def test_a_process_memory_comes_in_bytes(system, expected, monkeypatch):
    monkeypatch.setattr("sys.platform", system)
    assert max_rss_bytes(SimpleNamespace(ru_maxrss=3)) == expected


def video(clips=4):
    return {"video": torch.zeros(clips, 3, 5, 24, 24, dtype=torch.float64)}


def bytes_of(trainer):
    return sum(p.nbytes for each in trainer.trained for p in each.module.parameters())


def test_the_estimate_is_what_a_step_takes_and_changes_nothing(tmp_path):
    trainer, loss = toy_trainer(tmp_path)
    before = [p.clone() for each in trainer.trained for p in each.module.parameters()]
    state, activations = estimate_memory(trainer, video(), loss)
    for each in trainer.trained:
        assert all(p.grad is None for p in each.module.parameters())
    assert trainer.states["adversarial"].state_dict() == {"norms": None}
    with LiveMemory() as memory:
        measure_step_memory(trainer, video(), loss)
    # gradients, AdamW's two moments and activations
    expected = 3 * bytes_of(trainer) + activations
    assert_close(float(memory.peak), float(expected), rtol=0.05, atol=0)
    average = sum(p.nbytes for p in trainer.ema.model.parameters())
    assert state == 4 * bytes_of(trainer) + average
    after = [p for each in trainer.trained for p in each.module.parameters()]
    assert_close(before, after, rtol=0, atol=0)


def test_micro_batches_take_less_and_half_a_batch_half_of_the_activations(tmp_path):
    trainer, loss = toy_trainer(tmp_path)
    _, whole = estimate_memory(trainer, video(4), loss)
    _, half = estimate_memory(trainer, video(2), loss)
    assert_close(float(half), whole / 2, rtol=0.05, atol=0)
    trainer, loss = toy_trainer(tmp_path, micro_batch_size=2)
    _, parts = estimate_memory(trainer, video(4), loss)
    assert_close(float(parts), float(half), rtol=0.05, atol=0)


def test_a_loss_that_looks_at_values_has_no_estimate(tmp_path):
    trainer, loss = toy_trainer(tmp_path)

    def looking(module, batch, info):
        assert batch["video"].sum().item() == 0
        return loss(module, batch, info)

    assert estimate_memory(trainer, video(), looking) is None
