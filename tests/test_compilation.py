"""Compiled layers: a graph for each size of clips, none past the limit, and how many there are."""

import pytest
import torch
from accelerate import Accelerator
from torch._dynamo.utils import counters
from torch.testing import assert_close

from engine import compilation
from engine.compilation import compile_layers, compiled_graphs, compiles
from engine.run_folder import read_log
from scripts import train_vae
from tests.builders.packed import pack
from tests.builders.tiny_vae import scramble
from tests.builders.training_runs import video_run
from vae import VAEConfig, VideoVAE

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch, in tracing

CONFIG = VAEConfig(
    z_dim=4, dim=4, channel_multipliers=(1, 1), num_blocks=1, temporal_downsample=(True,)
)
SIZES = (3, 8, 8), (3, 8, 16), (5, 8, 8)
"""Buckets: frames, height, width."""


@pytest.fixture(autouse=True)
def fresh():
    """Graphs of other tests do not count."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def step(model, size):
    """Gradients of a step on a clip of this size."""
    x = torch.linspace(-1, 1, 3 * size[0] * size[1] * size[2]).view(1, 3, *size)
    model.zero_grad()
    y, posterior = model(x, torch.zeros(1))
    (y.square().mean() + posterior.kl().mean()).backward()
    return [p.grad for p in model.parameters()]


def test_every_bucket_has_its_graphs_and_no_limit_is_hit():
    model = scramble(VideoVAE(CONFIG)).train()
    expected = [step(model, size) for size in SIZES]
    compile_layers(model.layers(), backend="eager")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        after = []
        for size, gradients in zip(SIZES, expected, strict=True):
            assert_close(step(model, size), gradients)
            after.append(compiled_graphs())
        assert 0 < after[0] < after[1] < after[2] < compilation.RECOMPILE_LIMIT
        for size in SIZES:
            step(model, size)
    assert compiled_graphs() == after[2]


def test_a_limit_that_is_too_low_is_seen(monkeypatch):
    """Else the test above could not fail."""
    monkeypatch.setattr(compilation, "RECOMPILE_LIMIT", 1)
    model = scramble(VideoVAE(CONFIG)).train()
    compile_layers(model.layers(), backend="eager")
    with (
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
        pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit),
    ):
        step(model, SIZES[0])  # widths differ


def test_a_run_logs_the_graphs_that_it_compiled_itself(tmp_path):
    shards = pack(tmp_path, [5, 5, 5, 5])
    counters["stats"]["unique_graphs"] = 7  # of something else in this process
    train_vae.run(video_run(tmp_path / "eager", shards, steps=1))
    assert "compiled_graphs" not in read_log(tmp_path / "eager")[-1]


def test_compilation_is_the_default_on_cuda_alone(monkeypatch):
    accelerator = Accelerator(cpu=True)
    assert not compiles(None, accelerator)
    assert compiles(True, accelerator)
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    monkeypatch.setattr(compilation, "has_triton", lambda: True)
    assert compiles(None, accelerator)
    assert not compiles(False, accelerator)
    monkeypatch.setattr(compilation.fsdp, "is_active", lambda _: True)
    assert not compiles(None, accelerator)
