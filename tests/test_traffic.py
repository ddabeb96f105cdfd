"""Counts of what passes would do on a GPU, from tensors without values."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily

from benchmarks.traffic import BEFORE, SHARES, Traffic, measure, missed_bars
from benchmarks.traffic_count import CUDA, Count, CudaRules, EagerCounter, without_values
from latte import Latte, LatteConfig, dpm_solver
from latte.diffusion import DiffusionConfig, GaussianDiffusion, GuidanceInterval
from latte.flow import RectifiedFlow, integrate
from latte.samplers import denoise, guided
from vae import VAEConfig, VideoVAE


def count_on_cuda(function):
    """(the second call's count): what is made once, such as tables, is there by then."""
    with EagerCounter(Count()), CudaRules():
        function()
    count = Count()
    with EagerCounter(count), CudaRules():
        function()
    return count


def test_kernels_bytes_and_flop_of_a_product():
    with FakeTensorMode():
        a, b = (torch.empty(64, 64, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
        count = Count()
        with EagerCounter(count):
            (a.t() @ b + 1).view(-1)  # views cost nothing
    assert (count.kernels, count.flop) == (2, 2 * 64**3)
    assert (count.read, count.written) == (3 * 2 * 64**2, 2 * 2 * 64**2)


def test_copies_between_host_and_device_are_seen():
    with FakeTensorMode():
        table, t = torch.empty(10), torch.zeros(2, dtype=torch.int64, device=CUDA)
        count = Count()
        with EagerCounter(count):
            table.to(CUDA)
            t.max().item()
            torch.full((2,), 3, device=CUDA)
    assert count.copies == 2


@pytest.fixture
def latte():
    config = LatteConfig(
        in_channels=2, num_frames=3, height=4, width=4, patch_size=2, hidden_size=16, depth=2,
        num_heads=2, num_classes=5,
    )  # fmt: skip
    with FakeTensorMode(), torch.no_grad():
        model = Latte(config)
        without_values(model, CUDA, torch.float32)
        x, y = torch.empty(2, 2, 3, 4, 4, device=CUDA), torch.zeros(2, device=CUDA).long()
        yield model, x, y


def test_latte_and_its_losses_do_not_wait_for_the_host(latte):
    model, x, y = latte
    assert count_on_cuda(lambda: model(x, y, y)).copies == 0
    for process, t in (
        (GaussianDiffusion(), y),
        (GaussianDiffusion(DiffusionConfig(prediction="v", min_snr_gamma=5.0)), y),
        (RectifiedFlow(), y.float()),
    ):

        def loss(process=process, t=t):
            channels = 4 if isinstance(process, GaussianDiffusion) else 2
            process.training_loss(lambda x, t: model(x, t, y)[:, :channels], x, t, x)

        assert count_on_cuda(loss).copies == 0


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm_solver", "euler", "heun"])
@pytest.mark.parametrize("limited", [False, True])
def test_no_step_of_a_sampler_waits_for_the_host(latte, method, limited, monkeypatch):
    model, x, y = latte
    with unset_fake_temporarily():  # noise levels are read on the host, before the first step
        path = dpm_solver._path(GaussianDiffusion(), 3)
    monkeypatch.setattr(dpm_solver, "_path", lambda *_: path)
    whole = GaussianDiffusion()
    spaced = GaussianDiffusion(timesteps=[0, 500])
    with EagerCounter(Count()):
        forms = [guided(model, y, scale) for scale in (4.0, 1.0)]
    flow = method in ("euler", "heun")
    if flow:  # which has no variance
        forms = [lambda x, t, form=form: form(x, t)[:, :2] for form in forms]
    predict = GuidanceInterval(*forms, 100.0, 900.0) if limited else forms[0]

    def run():
        if flow:
            integrate(predict, x, 2, method=method)
        elif method == "dpm_solver":
            dpm_solver.dpm_solver(predict, whole, x, 3)
        else:
            denoise(predict, spaced, x, lambda i: torch.empty_like(x), method=method)

    assert count_on_cuda(run).copies == 0


def test_the_vae_does_not_wait_for_the_host():
    with FakeTensorMode(), torch.no_grad():
        model = VideoVAE(VAEConfig(dim=16, z_dim=4))
        without_values(model, CUDA, torch.bfloat16)
        x = torch.empty(1, 3, 5, 16, 16, device=CUDA, dtype=torch.bfloat16)
        z = torch.empty(1, 4, 2, 2, 2, device=CUDA, dtype=torch.bfloat16)
        assert count_on_cuda(lambda: model.encode_step(x, last=True)).copies == 0
        assert count_on_cuda(lambda: model.decode_step(z, last=True)).copies == 0
        assert count_on_cuda(lambda: model(x, z)).copies == 0


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_eager_passes_move_little_more_than_half_of_what_they_did(name):
    count, _ = measure(Traffic(), name, compiled=False)
    assert count.bytes < 0.53 * BEFORE[name, 720, 1280][1]
    assert count.copies == 0


@pytest.mark.parametrize(("name", "size"), [("encode", (720, 1280)), ("vae_step", (256, 256))])
def test_compiled_passes_hold_the_bars_and_do_no_more_arithmetic(name, size):
    config = Traffic(height=size[0], width=size[1])
    eager, compiled = (measure(config, name, compiled=form)[0] for form in (False, True))
    assert not missed_bars(config, name, {"eager": eager, "compiled": compiled})
    assert compiled.flop == eager.flop
    kernels, moved = BEFORE[name, *size]
    assert compiled.kernels < min(0.5 * kernels, eager.kernels)
    assert compiled.bytes < SHARES[name] * moved
    assert compiled.bytes < eager.bytes


def test_a_compiled_step_of_latte_does_the_arithmetic_of_an_eager_one_in_fewer_kernels():
    config = Traffic(size="S", latent_frames=3, latent_side=16)
    eager, compiled = (measure(config, "latte_step", compiled=form)[0] for form in (False, True))
    assert compiled.flop == eager.flop
    assert compiled.kernels < eager.kernels
    assert compiled.bytes < eager.bytes


def test_bars_that_are_missed_are_told():
    config = Traffic(height=256, width=256)
    more = Count(kernels=2855, read=int(200e9), written=int(105e9), flop=11)
    missed = missed_bars(config, "vae_step", {"eager": Count(flop=10), "compiled": more})
    assert missed == [
        "vae_step: 11 FLOP compiled, 10 eager",
        "vae_step: 2855 kernels are over half of 5709",
        "vae_step: 305 GB are over 0.4 of 762 GB",
    ]
    assert not missed_bars(replace(config, frames=21), "vae_step", {"compiled": more})
