"""A step's values are read while the next one runs; steps that are not finite change nothing."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from engine.ema import EMA
from engine.run_folder import read_log
from engine.train import Trainer
from engine.watch import ReducedValues
from tests.builders.toy_trainer import toy_trainer

NAN = float("nan")


def toy_run(folder, *, bad=(), steps=6, **values):
    """Train the toy on batches of which those of the steps `bad` hold a NaN."""
    trainer, step_loss = toy_trainer(folder, steps=steps, **values)

    def batches(start):
        for step in range(start, steps):
            random = torch.Generator().manual_seed(step)
            video = torch.rand(4, 3, 1, 8, 8, generator=random, dtype=torch.float64)
            if step in bad:
                video[2, 0, 0, 3, 3] = NAN
            yield {"video": video}

    trainer.run(batches, step_loss)
    return trainer, {
        **{
            f"{i}.{k}": v
            for i, p in enumerate(trainer.trained)
            for k, v in p.module.state_dict().items()
        },
        **{f"ema.{k}": v for k, v in trainer.ema.model.state_dict().items()},
    }


def test_values_are_read_one_step_late_but_for_steps_that_are_logged(tmp_path, monkeypatch):
    events = []
    add, read = Trainer.add_gradients, ReducedValues.read

    def noted_add(self, batch, loss, step):
        events.append(f"run {step + 1}")
        return add(self, batch, loss, step)

    def noted_read(self):
        events.append(f"read {self.step}")
        return read(self)

    monkeypatch.setattr(Trainer, "add_gradients", noted_add)
    monkeypatch.setattr(ReducedValues, "read", noted_read)
    toy_run(tmp_path, steps=5, log_every=3, save_every=100)
    # steps 3 (logged) and 5 (the last) at once, 1, 2 and 4 while the next one runs
    assert events == [
        *("run 1", "run 2", "read 1", "run 3", "read 2", "read 3"),
        *("run 4", "run 5", "read 4", "read 5"),
    ]


def test_late_reads_log_the_means_of_every_step(tmp_path):
    toy_run(tmp_path / "each", save_every=100)
    toy_run(tmp_path / "third", save_every=100, log_every=3)
    each, third = read_log(tmp_path / "each"), read_log(tmp_path / "third")
    assert [line["step"] for line in third] == [3, 6]
    for name in ("loss", "mae", "grad_norm"):
        for i, line in enumerate(third):
            mean = sum(line[name] for line in each[3 * i : 3 * i + 3]) / 3
            assert line[name] == pytest.approx(mean, rel=1e-6)


def test_a_step_skipped_on_the_device_equals_one_that_the_host_skips(tmp_path, caplog):
    bad = (2, 3)
    device, on_device = toy_run(tmp_path / "device", bad=bad, log_every=100, save_every=100)
    assert "step 3 skipped" in caplog.text
    assert "step 4 skipped" in caplog.text
    # a guard of spikes needs the numbers before the update: the host decides
    host, on_host = toy_run(tmp_path / "host", bad=bad, spike_factor=1e30, save_every=100)
    assert (device.guard.skipped, host.guard.skipped) == (2, 2)
    assert_close(on_device, on_host, rtol=0, atol=0)
    counts = {int(s["step"]) for s in device.trained[0].optimizer.state_dict()["state"].values()}
    assert counts == {4}  # of 6
    assert all(value.isfinite().all() for value in on_device.values())
    _, plain = toy_run(tmp_path / "plain", save_every=100)
    assert not torch.equal(plain["0.head.weight"], on_device["0.head.weight"])


def test_too_many_steps_that_are_not_finite_stop_a_run_that_reads_late(tmp_path):
    with pytest.raises(ValueError, match="3 steps in a row, the last is step 4"):
        toy_run(tmp_path, bad=(1, 2, 3), log_every=100, save_every=100, max_skipped_steps=3)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_the_update_is_adamws_unless_skip_says_so(tmp_path, skip):
    trainer, _ = toy_trainer(tmp_path)
    (trained, *_), model = trainer.trained, trainer.model
    twin = type(model)().to(next(model.parameters()))
    twin.load_state_dict(model.state_dict())
    options = trained.options
    reference = torch.optim.AdamW(
        twin.parameters(), 0.1, options.betas, weight_decay=options.weight_decay
    )
    gradient = NAN if skip else 0.5
    for parameter in (*model.parameters(), *twin.parameters()):
        parameter.grad = torch.full_like(parameter, gradient)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained.update(0.1, torch.tensor(skip))
    reference.step()
    assert_close(model.state_dict(), before if skip else twin.state_dict(), rtol=1e-12, atol=0)
    state = next(iter(trained.optimizer.state_dict()["state"].values()))
    assert int(state["step"]) == 1 - skip
    assert bool(state["exp_avg"].any()) is not bool(skip)


def test_the_average_stays_where_a_step_is_skipped():
    model = nn.Linear(2, 1)
    average = EMA(model, 0.5)
    before = [p.clone() for p in average.model.parameters()]
    for parameter in model.parameters():
        nn.init.constant_(parameter, 3.0)
    average.update(model, 5, torch.tensor(1.0))
    assert_close([*average.model.parameters()], before, rtol=0, atol=0)
    twin = EMA(model, 0.5)
    for one in (average, twin):
        one.model.load_state_dict(dict(zip(model.state_dict(), before, strict=True)))
    average.update(model, 5, torch.tensor(0.0))
    twin.update(model, 5)
    assert_close([*average.model.parameters()], [*twin.model.parameters()], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("checked", "expected"),
    [({"a": 1.0, "b": 2.0}, 0), ({"a": 1.0, "b": NAN}, 1), ({"a": float("-inf"), "b": 2.0}, 1)],
)
def test_only_checked_values_must_be_finite(tmp_path, checked, expected):
    trainer, _ = toy_trainer(tmp_path)
    tensors = {name: torch.tensor(value) for name, value in checked.items()}
    reduced = ReducedValues(1, tensors, {"count": torch.tensor(NAN)}, trainer.accelerator)
    assert reduced.not_finite().item() == expected
    values, counts = reduced.read()
    assert list(values) == ["a", "b"]
    assert list(counts) == ["count"]
