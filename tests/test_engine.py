"""Atomic files, seeding, command line, averaging, schedules and run folders."""

import copy
import errno
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.testing import assert_close

from common.cli import parse
from common.files import atomic_folder, atomic_path, read_json, sha256_file, write_json
from common.seeding import fold, generator, noise
from engine.accelerator import training_accelerator
from engine.checkpoints import kept
from engine.config import OptimizerConfig, TrainConfig
from engine.ema import EMA
from engine.guard import Guard
from engine.optimization import TrainedModule
from engine.run_folder import RunFolder, read_log
from engine.schedule import learning_rate_at
from engine.watch import Means, Stopwatch
from tests.builders.commands import exit_code


def config(**values):
    return TrainConfig(**{"folder": "runs/x", "steps": 100, "global_batch_size": 8, **values})


# files


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "a.json"
    write_json(target, {"x": 1})

    def interrupted():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert read_json(target) == {"x": 1}
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_folder(target) as temporary:
            (temporary / content).write_text(content)
    assert [p.name for p in target.iterdir()] == ["new"]
    with pytest.raises(ZeroDivisionError), atomic_folder(target):
        _ = 1 / 0
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_json_with_nan_and_broken_json_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b.json: not valid JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(ValueError, match="no such file"):
        read_json(tmp_path / "c.json")


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


# seeding


def test_fold_is_stable_and_tells_its_parts_apart():
    assert fold(0, "noise", 1) == 4023890355727687668  # runs made before must stay resumable
    values = {fold(0, 1), fold(1, 0), fold(0, "1"), fold("01"), fold(0, 1, 0), fold(0)}
    assert len(values) == 6
    assert all(0 <= value < 2**63 for value in values)


def test_fold_does_not_depend_on_the_process():
    code = "from common.seeding import fold; print(fold(3, 'clip', 'v_a_b'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == fold(3, "clip", "v_a_b")


def test_noise_depends_on_place_and_step_but_not_on_how_the_batch_is_shared():
    whole = noise((2, 3), 0, "n", 5, range(4))
    parts = [noise((2, 3), 0, "n", 5, range(i, i + 2)) for i in (0, 2)]
    assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, noise((2, 3), 0, "n", 6, range(4)))
    assert not torch.equal(whole, noise((2, 3), 1, "n", 5, range(4)))
    assert not torch.equal(whole, noise((2, 3), 0, "m", 5, range(4)))
    assert generator(1, 2).initial_seed() == fold(1, 2)


# command line


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner part."""

    rate: float = 0.5
    """A rate, per step."""

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate={self.rate} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command."""

    out: str
    """Output folder."""
    size: tuple[int, int] = (1, 2)
    """Two sizes."""
    inner: Inner = field(default_factory=Inner)
    """The inner part."""


def test_yaml_and_flags_build_the_config(tmp_path):
    (tmp_path / "a.yaml").write_text("out: x\ninner:\n  rate: 0.25\nsize: [3, 4]\n")
    found = parse(Command, ["--config", str(tmp_path / "a.yaml"), "--out", "y"])
    assert found == Command(out="y", size=(3, 4), inner=Inner(rate=0.25))
    assert parse(Command, ["--out=y", "--inner.rate=2"]).inner.rate == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: out"),
        (["--out", "x", "--inner.speed", "1"], "--inner.speed"),
        (["--out", "x", "--inner.rate", "fast"], "inner.rate"),
        (["--out", "x", "--inner.rate=-1"], "rate=-1.0 must not be negative"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    assert exit_code(Command, lambda config: None) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_report_of_torchrun_ends_with_the_mistake(tmp_path, monkeypatch):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setattr(sys, "argv", ["command", "--out=x", "--inner.rate=-1"])
    code = exit_code(Command, lambda config: None)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file=str(file))
    cause = str(ChildFailedError("command", {0: failure})).partition("Root Cause")[2]
    assert "traceback : error: inner: rate=-1.0 must not be negative" in cause


@pytest.mark.parametrize(
    "too_much",
    [
        lambda: torch.empty(10**15),  # more than there is
        lambda: torch.empty(10**12, 10**12),  # more than there can be
        lambda: [None] * 10**17,
    ],
)
def test_more_memory_than_there_is_is_one_line_and_exit_code_2(too_much, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--out=x"])
    assert exit_code(Command, lambda config: too_much()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory. Lower ")
    assert error.count("\n") == 1


def test_another_fault_of_torch_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "--out=x"])
    with pytest.raises(RuntimeError, match="shape"):
        exit_code(Command, lambda config: torch.zeros(3).view(2))


def test_unknown_keys_in_yaml_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("out: x\ninner: {speed: 1}\n")
    with pytest.raises(ValueError, match="speed"):
        parse(Command, ["--config", str(tmp_path / "a.yaml")])


def test_a_full_disk_is_one_line_and_other_system_errors_are_not_hidden(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--out", "x"])

    def fill(config):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/file")

    assert exit_code(Command, fill) == 2
    assert "runs/x/file: No space left on device" in capsys.readouterr().err

    def other(config):
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        exit_code(Command, other)


def test_help_explains_every_field(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    assert exit_code(Command, lambda config: None) == 0
    text = capsys.readouterr().out
    for words in ("Output folder.", "Two sizes.", "A rate, per step.", "default: 0.5"):
        assert words in text


# training settings


def test_learning_rate_warms_up_and_follows_its_schedule():
    constant = config(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate_at(constant, s, 100) for s in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    cosine = config(learning_rate=1.0, warmup_steps=50, schedule="cosine")
    assert_close(learning_rate_at(cosine, 75, 100), 0.5)
    assert_close(learning_rate_at(cosine, 100, 100), 0.0)


def test_a_batch_is_shared_equally_or_refused():
    assert config().local_batch_size(4) == 2
    with pytest.raises(ValueError, match="multiple of 3"):
        config().local_batch_size(3)
    with pytest.raises(ValueError, match=r"micro_batch_size=3 .* 4 clips"):
        config(micro_batch_size=3).local_batch_size(2)
    assert config(micro_batch_size=4).local_batch_size(4) == 2  # fewer than one micro-batch


@pytest.mark.parametrize(
    "name", ["steps", "global_batch_size", "learning_rate", "micro_batch_size", "keep"]
)
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=name):
        config(**{name: 0})


def test_the_average_follows_in_closed_form():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = EMA(model, decay=0.5)
    expected = 0.0
    for step in range(1, 30):
        nn.init.constant_(model.weight, step)
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert_close(ema.model.weight.item(), expected)
    assert not ema.model.weight.requires_grad


# run folders


def test_moments_that_lie_otherwise_in_memory_than_the_weights_are_put_in_order():
    """As in a checkpoint of sharded weights, or of a model that stored them in another order."""

    def build():
        module = nn.Linear(3, 4)
        module.weight.data = torch.arange(12.0).view(4, 3)
        return module

    def step(trained, number):
        generator = torch.Generator().manual_seed(number)
        weight = trained.module.weight
        weight.grad = torch.empty_like(weight).copy_(torch.randn(4, 3, generator=generator))
        trained.update(0.1)

    plain = TrainedModule(build(), OptimizerConfig(), Accelerator(cpu=True))
    step(plain, 0)
    other = build()
    other.weight.data = plain.module.weight.detach().t().contiguous().t()  # the same, by columns
    resumed = TrainedModule(other, OptimizerConfig(), Accelerator(cpu=True))
    resumed.optimizer.load_state_dict(copy.deepcopy(plain.optimizer.state_dict()))
    resumed.lay_out_optimizer_state()
    step(plain, 1)
    step(resumed, 1)
    assert_close(resumed.module.weight, plain.module.weight)


def test_a_changed_config_is_refused_with_the_difference(tmp_path):
    folder = RunFolder(tmp_path, Accelerator())
    folder.check(config(folder=str(tmp_path)))
    folder.write_identity()
    folder.check(config(folder=str(tmp_path), steps=200, workers=3))
    with pytest.raises(ValueError, match=r"learning_rate was 0\.0001, now 0\.1") as error:
        folder.check(config(learning_rate=0.1, steps=7))
    assert "steps" not in str(error.value)


def test_a_resumed_log_forgets_what_will_come_again(tmp_path):
    steps = (2, 4, 6)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in steps))
    folder = RunFolder(tmp_path, Accelerator(log_with="tensorboard", project_dir=tmp_path))
    folder.start_log(4)
    folder.write_log(5, {"loss": 1.0})
    folder.accelerator.end_training()
    assert [line["step"] for line in read_log(tmp_path)] == [2, 4, 5]


def test_the_last_checkpoints_stay_and_every_mth():
    assert kept([2, 4, 6, 8, 10, 12], 2, None) == ([10, 12], [2, 4, 6, 8])
    assert kept([2, 4, 6, 8, 10, 12], 1, 4) == ([4, 8, 12], [2, 6, 10])
    with pytest.raises(ValueError, match=r"keep_every=5 .*save_every=2"):
        config(keep_every=5, save_every=2)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        training_accelerator(config(wandb="project"))


# guards


def test_bad_steps_are_counted_refused_and_at_last_stop_the_run(caplog):
    guard = Guard(max_skipped_steps=3)
    good, bad = {"mae": 1.0, "grad_norm": 2.0}, {"mae": 1.0, "grad_norm": math.nan}
    verdicts = [guard.accepts(i, v, ["grad_norm"]) for i, v in enumerate((bad, bad, good, bad))]
    assert verdicts == [False, False, True, False]
    assert guard.skipped == 3
    assert "step 3 skipped: grad_norm is nan" in caplog.text
    resumed = Guard(max_skipped_steps=3)
    resumed.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    for one in (guard, resumed):
        assert not one.accepts(4, bad, ["grad_norm"])
        with pytest.raises(ValueError, match=r"3 steps in a row.*step 5 \(grad_norm is nan\)"):
            one.accepts(5, bad, ["grad_norm"])


def test_spikes_are_refused_until_they_are_the_rule():
    guard = Guard(max_skipped_steps=1, spike_factor=3)
    steps = [guard.accepts(i, {"n": 1.0}, ["n"]) for i in range(50)]
    assert all(steps)
    assert guard.accepts(50, {"n": 2.9}, ["n"])
    assert not guard.accepts(51, {"n": 3.1}, ["n"])
    later = [guard.accepts(i, {"n": 10.0}, ["n"]) for i in range(52, 120)]
    assert not later[0]
    assert later[-1]
    assert guard.skipped == 1 + later.count(False)
    assert Guard(max_skipped_steps=1).accepts(0, {"n": 1e30}, ["n"])  # off


# watching


def test_the_stopwatch_gives_each_part_its_time(monkeypatch):
    clock = iter((0.0, 1.0, 3.0, 7.0, 15.0, 31.0))  # made, restarted, four looks
    monkeypatch.setattr("engine.watch.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    watch = Stopwatch(torch.device("cpu"))
    watch.restart()
    watch.mark("a")
    watch.mark("b")
    watch.mark("a")
    watch.finish()
    assert watch.read() == [{"a": 2.0 + 8.0, "b": 4.0}]
    assert watch.read() == []


def test_means_count_where_a_name_occurs():
    means = Means()
    means.add({"x": 1.0, "y": 3.0})
    means.add({"x": 2.0})
    assert means.flush() == {"x": 1.5, "y": 3.0}
    assert means.flush() == {}
