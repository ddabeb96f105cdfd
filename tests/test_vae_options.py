"""Options that keep results: activation checkpointing, bfloat16, channels-last, torch.compile."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from common.measure import LiveMemory
from tests.builders.tiny_vae import TINY, make, scramble, video
from tests.builders.vectors import load_case, uniform
from vae import VAEConfig, VideoVAE, weights_hash
from vae.checkpointing import enable_activation_checkpointing
from vae.convert import from_released
from vae.convs import Chunk, TemporalConv

SHALLOW = VAEConfig(
    z_dim=4, dim=4, channel_multipliers=(1, 1), num_blocks=1, temporal_downsample=(True,)
)
"""Two levels, for the compiler's sake."""
BASELINE = VAEConfig.preset("baseline", z_dim=4, dim=4, num_blocks=1)


def gradients(model: VideoVAE, x: torch.Tensor, chunk_groups: int | None) -> list[torch.Tensor]:
    """Of a loss over encoder and decoder: the input's, then every weight's."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(0)  # dropout
    z = model.encode(x, chunk_groups=chunk_groups).mean
    model.decode(z, chunk_groups=chunk_groups).square().mean().backward()
    return [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("chunk_groups", [None, 1])
@pytest.mark.parametrize(
    "config", [replace(TINY, dropout=0.3), BASELINE], ids=["ivvae", "baseline"]
)
def test_checkpointing_gives_the_same_gradients_bit_for_bit(config, chunk_groups):
    model, x = make(config).train(), video(9, 8, 8)
    plain = gradients(model, x, chunk_groups)
    enable_activation_checkpointing(model)
    for a, b in zip(gradients(model, x, chunk_groups), plain, strict=True):
        assert torch.equal(a, b)


def test_checkpointing_keeps_less():
    model, x = VideoVAE(VAEConfig(z_dim=4, dim=8)), torch.zeros(1, 3, 9, 64, 64)
    peaks = []
    for checkpointing in (False, True):
        if checkpointing:
            enable_activation_checkpointing(model)
        with LiveMemory() as live:
            model(x, torch.zeros(1, 4, 3, 8, 8))[0].mean().backward()
        peaks.append(live.peak)
    assert peaks[1] < 0.5 * peaks[0]


def test_checkpointing_does_not_touch_weights_or_copies():
    model = make()
    before = weights_hash(model)
    for _ in range(2):
        enable_activation_checkpointing(model)
    assert weights_hash(model) == before
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.decoder.middle[0].conv2.bias += 1
        z = torch.randn(1, 4, 2, 1, 1, dtype=torch.float64)
        assert not torch.equal(twin.decode(z), model.decode(z))
    z.requires_grad_()
    assert not torch.equal(twin.decode(z), model.decode(z))  # a copy runs its own weights


@pytest.mark.parametrize("config", [TINY, BASELINE], ids=["ivvae", "baseline"])
def test_kernels_find_each_temporal_tap_channels_last(config, tmp_path):
    built = VideoVAE(config)
    built.save_pretrained(tmp_path)
    for model in (built, VideoVAE.from_pretrained(tmp_path), copy.deepcopy(built).bfloat16()):
        for module in model.modules():
            if isinstance(module, TemporalConv | nn.Conv2d) and module.kernel_size[-1] > 1:
                taps = module.weight[:, :, None] if module.weight.ndim == 4 else module.weight
                for tap in taps.unbind(2):
                    assert tap.is_contiguous(memory_format=torch.channels_last)


def test_parts_of_a_weight_are_cast_once_under_autocast():
    conv = TemporalConv(4, 4, group=4, causal=False)
    x, calls = torch.randn(5, 4, 8, 8), []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].ndim == 5:
                calls.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    with Casts(), torch.autocast("cpu", torch.bfloat16):
        conv(x, Chunk(batch_size=1, image=True, past={}))
    assert calls == [conv.weight.shape]


@pytest.fixture(scope="module")
def reference():
    """The model of the reference vectors, a video, its mean and its reconstruction."""
    case = load_case("ivvae_z4_dim8")
    info = case.info["cases"][2]
    model = from_released(case.weights(), VAEConfig(z_dim=4, dim=8)).eval()
    x = uniform(info["input_seed"], info["input_shape"])
    return model, x, case.outputs["mean.2"], case.outputs["recon.2"]


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over that of the expected values."""
    return float(
        (value.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    )


def test_bfloat16_stays_within_4_percent(reference):
    model, x, mean, recon = reference
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        posterior = half.encode(x)
        assert posterior.mean.dtype == torch.float32
        y = half.decode(mean)
        assert y.dtype == torch.bfloat16
        assert 1e-4 < error(posterior.mean, mean) < 0.04
        assert 1e-4 < error(y, recon) < 0.04


def test_autocast_stays_within_4_percent(reference):
    model, x, mean, recon = reference
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(x)
        assert posterior.mean.dtype == torch.float32
        assert 1e-4 < error(posterior.mean, mean) < 0.04
        assert 1e-4 < error(model.decode(mean), recon) < 0.04


def test_streaming_in_bfloat16_equals_the_whole(reference):
    model, x, _, _ = reference
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        parts = half.stream_encode(x.split([1, 4, 4], dim=2))
        moments = torch.cat([part.moments for part in parts], dim=2)
        assert error(moments, half.encode(x).moments) < 0.01


def test_encoder_and_decoder_compile_to_one_graph_each():
    """With fullgraph a graph break is an error; "eager" runs the traced graph as it is."""
    model = make(SHALLOW)
    twin = copy.deepcopy(model)
    for half in (twin.encoder, twin.decoder):
        half.compile(fullgraph=True, backend="eager", dynamic=False)
    x = video(9, 8, 8)
    with torch.no_grad():
        z = model.encode(x)
        assert_close(twin.encode(x).moments, z.moments)
        parts = twin.stream_encode(x.split([5, 4], dim=2))
        assert_close(torch.cat([part.moments for part in parts], dim=2), z.moments)
        assert_close(twin.decode(z.mean), model.decode(z.mean))
    assert weights_hash(twin) == weights_hash(model)
    torch.compiler.reset()


def test_a_training_step_compiles_to_one_graph():
    model = make(SHALLOW)
    x, noise = video(5, 4, 4), torch.randn(1, 4, 3, 2, 2, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    results = []
    for run in (model, compiled):
        model.zero_grad()
        y, posterior = run(x, noise)
        (y.abs().mean() + posterior.kl().mean()).backward()
        results.append([y, *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert_close(a, b)
    torch.compiler.reset()


def test_checkpointed_layers_compile_too():
    model = make(SHALLOW)
    twin = copy.deepcopy(model)
    enable_activation_checkpointing(twin)
    twin.encoder.compile(fullgraph=True, backend="eager", dynamic=False)
    results = []
    for run in (model, twin):
        run.zero_grad()
        run.encode(video(5, 8, 8)).mean.square().mean().backward()
        results.append([p.grad for p in run.encoder.parameters()])
    for a, b in zip(*results, strict=True):
        assert_close(a, b)
    torch.compiler.reset()


def test_activations_are_channels_last():
    model = scramble(VideoVAE(TINY)).eval()
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and ".layers." in name:
            module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model.reconstruct(video(5).float())
    assert seen
    assert all(x.stride(1) == 1 for x in seen)  # a position's channels lie side by side
