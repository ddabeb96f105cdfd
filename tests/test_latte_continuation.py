"""Known first frames stay, under every sampler, and the others come to fit them."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from latte.continuation import replacement_guidance
from latte.diffusion import DiffusionConfig, GaussianDiffusion
from latte.dpm_solver import dpm_solver
from latte.flow import RectifiedFlow, integrate
from latte.samplers import SamplerConfig, denoise, sample, spaced_timesteps
from tests.builders.tiny_latte import TINY, awake
from tests.builders.vectors import normal

SHAPE = (2, 3, 4, 2, 2)
"""Of the clips: two of four frames; one is known."""


def copying(diffusion):
    """A denoiser for clips that stand still: every frame's x_0 is the first frame's, whose own it
    reads off its noise level as if the data were N(0, 1)."""

    def model_fn(x, t):
        a = diffusion.alpha_bar[t.long()].float().view(-1, 1, 1, 1, 1)
        x0 = (a.sqrt() * x[:, :, :1]).expand_as(x)  # E[x_0 | x_t] for N(0, 1)
        noise = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return torch.cat([noise, torch.zeros_like(noise)], dim=1)

    return model_fn


def run(method, model_fn, diffusion, start):
    if method == "dpm_solver":
        pytest.importorskip("diffusers")
        return dpm_solver(model_fn, diffusion, start, 50)
    spaced = GaussianDiffusion(diffusion.config, spaced_timesteps(1000, 50))
    noise = torch.Generator().manual_seed(5)

    def draw(_):
        return torch.randn(start.shape, generator=noise)

    return denoise(model_fn, spaced, start, draw, method=method)


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm_solver"])
def test_a_diffusion_ends_in_the_known_frame(method):
    """Before anything is put back: the sampler itself arrives there; the rest of a clip that
    stands still follows."""
    diffusion = GaussianDiffusion()
    known, start = 1.5 * normal(1, (2, 3, 1, 2, 2)), normal(2, SHAPE)
    model_fn = copying(diffusion)
    latents = run(method, replacement_guidance(model_fn, diffusion, known, start), diffusion, start)
    assert_close(latents[:, :, :1], known, rtol=1e-3, atol=1e-3)
    assert_close(latents[:, :, 1:], known.expand(-1, -1, 3, -1, -1), rtol=0, atol=0.1)
    without = run(method, model_fn, diffusion, start)
    assert (without[:, :, 1:] - known).abs().mean() > 0.5


def test_the_known_frame_passes_through_the_training_noise_levels():
    """Under DDPM it is at every step distributed as q(x_t | x_0): its noise stays standard."""
    diffusion = GaussianDiffusion()
    spaced = GaussianDiffusion(diffusion.config, spaced_timesteps(1000, 20))
    known, start = torch.full((1, 1, 1, 60, 60), 2.0), normal(2, (1, 1, 2, 60, 60))
    spreads = []

    def watching(x, t):
        a = diffusion.alpha_bar[int(t[0])].item()
        noise = (x[:, :, :1] - a**0.5 * known) / (1 - a) ** 0.5
        spreads.append((noise.mean().item(), noise.std().item()))
        return torch.zeros(1, 2, *x.shape[2:])

    random = torch.Generator().manual_seed(0)
    denoise(
        replacement_guidance(watching, diffusion, known, start),
        spaced,
        start,
        lambda _: torch.randn(start.shape, generator=random),
    )
    assert len(spreads) == 20
    for mean, std in spreads:
        assert_close([mean, std], [0.0, 1.0], rtol=0, atol=0.06)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_a_flow_ends_in_the_known_frame(method):
    known, start = normal(1, (2, 3, 1, 2, 2)), normal(2, SHAPE)
    model_fn = replacement_guidance(lambda x, t: 0.1 * x, RectifiedFlow(), known, start)
    latents = integrate(model_fn, start, 7, method=method)
    assert_close(latents[:, :, :1], known, rtol=1e-5, atol=1e-5)


def test_v_gives_what_noise_gives():
    known, start = normal(1, (2, 3, 1, 2, 2)), normal(2, SHAPE)
    by_noise, by_v = GaussianDiffusion(), GaussianDiffusion(DiffusionConfig(prediction="v"))
    noise_fn = copying(by_noise)

    def v_fn(x, t):
        a = by_v.alpha_bar[t].float().view(-1, 1, 1, 1, 1)
        x0 = by_noise.predict(noise_fn(x, t), x, t).x0
        v = a.sqrt() * noise_fn(x, t)[:, :3] - (1 - a).sqrt() * x0
        return torch.cat([v, torch.zeros_like(v)], dim=1)

    one = run("ddim", replacement_guidance(noise_fn, by_noise, known, start), by_noise, start)
    other = run("ddim", replacement_guidance(v_fn, by_v, known, start), by_v, start)
    assert_close(other, one, rtol=1e-3, atol=1e-3)


def test_sampled_clips_start_with_exactly_what_was_given():
    model, diffusion = awake(TINY), GaussianDiffusion()
    config = SamplerConfig(method="ddim", steps=4, guidance=2.0)
    known = normal(1, (2, 3, 1, 4, 6))
    options = {"indices": [0, 1], "labels": [0, 1], "seed": 0}
    latents = sample(model, diffusion, config, known=known, **options)
    assert torch.equal(latents[:, :, :1], known)
    other = sample(model, diffusion, config, known=known.flip(0), **options)
    assert not torch.allclose(other[:, :, 1:], latents[:, :, 1:], atol=1e-3)  # they take notice
    flow = awake(replace(TINY, learn_sigma=False))
    config = SamplerConfig(method="heun", steps=2)
    assert torch.equal(
        sample(flow, RectifiedFlow(), config, known=known, **options)[:, :, :1], known
    )


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 2, 2), (2, 3, 0, 2, 2), (2, 3, 1, 2, 3), (1, 3, 1, 2, 2)]
)
def test_frames_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"\(2, 3, 'k', 2, 2\) .* from 1 to 3"):
        replacement_guidance(
            lambda x, t: x, GaussianDiffusion(), torch.zeros(shape), torch.zeros(SHAPE)
        )
