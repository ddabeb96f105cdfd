"""Samplers: reference trajectories, guidance, and clips that depend on (seed, index) alone."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from latte.diffusion import DiffusionConfig, GaussianDiffusion, GuidanceInterval, model_at
from latte.dpm_solver import dpm_solver, even_timesteps
from latte.flow import RectifiedFlow
from latte.samplers import (
    SamplerConfig,
    check_sampler,
    denoise,
    guided,
    sample,
    spaced_timesteps,
)
from tests.builders.tiny_latte import TINY, awake, inputs
from tests.builders.vectors import load_case, normal

FEW = SamplerConfig(steps=4)


@pytest.mark.parametrize(
    ("name", "steps", "spacing"),
    [
        ("timesteps_250", 250, "fractional"),
        ("timesteps_50", 50, "fractional"),
        ("timesteps_ddim50", 50, "stride"),
        ("timesteps_ddim10", 10, "stride"),
    ],
)
def test_reference_timesteps(name, steps, spacing):
    assert spaced_timesteps(1000, steps, spacing) == load_case("diffusion").info[name]


def test_all_timesteps():
    assert spaced_timesteps(7, 7) == list(range(7))
    assert spaced_timesteps(7, 7, "stride") == list(range(7))
    for steps in range(2, 1001):
        chosen = spaced_timesteps(1000, steps)
        assert len(set(chosen)) == steps
        assert (chosen[0], chosen[-1]) == (0, 999)


@pytest.mark.parametrize(("method", "spacing"), [("ddpm", "fractional"), ("ddim", "stride")])
def test_reference_trajectories(method, spacing):
    case = load_case("diffusion")
    seed, shape = case.info["seed"], case.info["shape"]

    def noise(offset):
        return normal(seed + offset, shape).transpose(1, 2)

    def model_fn(x, t):
        return torch.cat(
            [0.3 * x + 0.01 * t.view(-1, 1, 1, 1, 1) / 1000, torch.full_like(x, 0.2)], dim=1
        )

    diffusion = GaussianDiffusion(timesteps=spaced_timesteps(1000, 10, spacing))
    latents = denoise(model_fn, diffusion, noise(3), lambda i: noise(10 + i), method=method)
    expected = case.outputs[f"{method}10"].transpose(1, 2)
    assert_close(latents, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def gaussian_model(diffusion, mean, variance):
    """The exact prediction, of noise or v, for data from N(mean, variance)."""

    def model_fn(x, t):
        alpha_bar = diffusion.alpha_bar[torch.searchsorted(diffusion.timesteps, t)].float()
        alpha_bar = alpha_bar.view(-1, 1, 1, 1, 1)
        total = alpha_bar * variance + 1 - alpha_bar
        noise = (x - alpha_bar.sqrt() * mean) * (1 - alpha_bar).sqrt() / total
        if diffusion.config.prediction == "noise":
            return noise
        x0 = mean + alpha_bar.sqrt() * variance / total * (x - alpha_bar.sqrt() * mean)
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0

    return model_fn


@pytest.mark.parametrize("prediction", ["noise", "v"])
@pytest.mark.parametrize(("method", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_a_known_distribution_is_recovered(method, eta, prediction):
    """With the exact prediction for Gaussian data, samples have the data's mean and variance."""
    config = DiffusionConfig(prediction=prediction)
    diffusion = GaussianDiffusion(config, spaced_timesteps(1000, 250))
    noise = torch.Generator().manual_seed(0)

    def draw(_):
        return torch.randn((1, 1, 1, 100, 100), generator=noise)

    model_fn = gaussian_model(diffusion, 2.0, 0.25)
    x = denoise(model_fn, diffusion, draw(0), draw, method=method, eta=eta)
    assert_close(x.mean().item(), 2.0, rtol=0, atol=0.03)
    assert_close(x.std().item(), 0.5, rtol=0, atol=0.03)


@pytest.mark.parametrize("prediction", ["noise", "v"])
def test_dpm_solver_recovers_it_in_25_steps_closer_than_ddim(prediction):
    """The exact ODE takes noise z to mean + std z, but for the little signal in the last step."""
    diffusion = GaussianDiffusion(DiffusionConfig(prediction=prediction))
    start = normal(0, (1, 1, 1, 50, 50))
    exact = 2.0 + 0.5 * start
    solved = dpm_solver(gaussian_model(diffusion, 2.0, 0.25), diffusion, start, 25)
    spaced = GaussianDiffusion(diffusion.config, spaced_timesteps(1000, 25))
    model_fn = gaussian_model(spaced, 2.0, 0.25)
    ddim = denoise(model_fn, spaced, start, torch.zeros_like, method="ddim")
    errors = [(x - exact).square().mean().sqrt().item() for x in (solved, ddim)]
    assert errors[0] < min(0.01, errors[1] / 5), errors


@pytest.mark.parametrize("steps", [2, 25, 250, 1000])
def test_steps_even_in_log_snr(steps):
    diffusion = GaussianDiffusion()
    chosen = even_timesteps(diffusion, steps)
    assert (len(chosen), chosen[0], chosen[-1]) == (steps, 0, 999)
    assert sorted(set(chosen)) == chosen
    if steps == 25:  # near the data whole numbers are far apart
        alpha_bar = diffusion.alpha_bar[chosen]
        distances = (alpha_bar / (1 - alpha_bar)).log().diff()[5:]
        assert_close(distances, distances.mean().expand_as(distances), rtol=0.1, atol=0)


def test_dpm_solver_takes_no_notice_of_a_learned_variance():
    diffusion, start = GaussianDiffusion(), normal(0, (2, 1, 1, 2, 2))
    exact = gaussian_model(diffusion, 2.0, 0.25)
    wide = dpm_solver(lambda x, t: torch.cat([exact(x, t), x], 1), diffusion, start, 4)
    assert torch.equal(wide, dpm_solver(exact, diffusion, start, 4))


@pytest.mark.parametrize("prediction", ["noise", "v"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_dpm_solver_is_that_of_diffusers(prediction):
    diffusers = pytest.importorskip("diffusers")
    diffusion, start = (
        GaussianDiffusion(DiffusionConfig(prediction=prediction)),
        normal(0, (2, 1, 1, 4, 4)),
    )
    exact = gaussian_model(diffusion, 2.0, 0.25)

    def model(x, t):
        return exact(x, t) + 0.3 * torch.sin(3 * x + t.view(-1, 1, 1, 1, 1) / 100)

    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=diffusion.beta.float().numpy(),
        prediction_type={"noise": "epsilon", "v": "v_prediction"}[prediction],
        algorithm_type="dpmsolver++",
    )
    for steps in (2, 3, 10, 20):
        scheduler.set_timesteps(timesteps=even_timesteps(diffusion, steps)[::-1])
        scheduler.set_begin_index(0)
        expected = start
        for t in scheduler.timesteps:
            expected = scheduler.step(model(expected, t.repeat(2)), t, expected).prev_sample
        assert_close(dpm_solver(model, diffusion, start, steps), expected, rtol=1e-4, atol=1e-4)


def test_guidance_in_an_interval_only():
    model = awake(TINY)
    x, t, y = inputs(TINY)
    everywhere = guided(model, y, 3.0)
    part = GuidanceInterval(everywhere, guided(model, y), 200.0, 400.0)
    for step, inside in ((100, False), (200, True), (400, True), (401, False)):
        t = torch.full_like(t, step)
        expected = everywhere(x, t) if inside else model(x, t, y)
        assert torch.equal(model_at(part, step)(x, t), expected), step


def test_the_interval_is_a_share_of_the_schedule():
    """Guided steps take twice the rows."""
    model = awake(TINY)
    rows = []
    model.register_forward_pre_hook(
        lambda module, given: rows.append((int(given[1][0]), len(given[0])))
    )
    config = SamplerConfig(method="ddim", steps=5, guidance=2.0, guidance_interval=(0.2, 0.6))
    sample(model, GaussianDiffusion(), config, indices=[0], labels=[1], seed=0)
    assert rows == [(999, 1), (749, 1), (500, 2), (250, 2), (0, 1)]


def test_methods_that_do_not_fit_the_process():
    unconditional = replace(TINY, num_classes=None)
    for method in ("euler", "heun"):
        with pytest.raises(ValueError, match=r"Use ddpm, ddim or dpm_solver"):
            check_sampler(SamplerConfig(method=method), GaussianDiffusion(), unconditional)
        check_sampler(SamplerConfig(method=method), RectifiedFlow(), unconditional)
    with pytest.raises(ValueError, match=r"is a flow\. Use euler or heun"):
        check_sampler(SamplerConfig(), RectifiedFlow(), unconditional)


def test_a_flow_is_sampled():
    model = awake(replace(TINY, learn_sigma=False))
    config = SamplerConfig(method="heun", steps=1, guidance=2.0)
    together = sample(model, RectifiedFlow(), config, indices=[0, 1], labels=[0, 1], seed=1)
    alone = sample(model, RectifiedFlow(), config, indices=[1], labels=[1], seed=1)
    assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_noise_is_asked_for_only_where_it_is_used():
    diffusion = GaussianDiffusion(timesteps=[0, 500, 999])
    start = normal(0, (1, 1, 1, 2, 2))
    for method, eta, expected in (("ddpm", 0.0, [2, 1]), ("ddim", 0.0, []), ("ddim", 0.5, [2, 1])):
        asked: list[int] = []
        denoise(
            lambda x, t: 0.1 * x,
            diffusion,
            start,
            lambda i: asked.append(i) or torch.zeros_like(start),  # noqa: B023
            method=method,
            eta=eta,
        )
        assert asked == expected


def test_a_clip_depends_on_seed_and_index_alone():
    model, diffusion = awake(TINY), GaussianDiffusion()

    def run(indices, seed=1, **changes):
        labels = [index % 5 for index in indices]
        config = replace(FEW, guidance=2.0, **changes)
        return sample(model, diffusion, config, indices=indices, labels=labels, seed=seed)

    for changes in ({}, {"method": "ddim", "eta": 0.5}):
        together = run([0, 1, 2, 7], **changes)
        assert_close(run([7, 1], **changes), together[[3, 1]], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(together[0], run([5], **changes)[0], atol=0.1)
        assert not torch.allclose(together, run([0, 1, 2, 7], seed=2, **changes), atol=0.1)
    assert torch.equal(run([3, 4]), run([3, 4]))


def test_the_steps_of_a_clip_draw_different_noise():
    """A sampler that drew the same noise twice would still pass the test above."""
    drawn = []
    model = awake(TINY)
    original = torch.randn

    def record(*args, **kwargs):
        drawn.append(original(*args, **kwargs))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", record)
        sample(model, GaussianDiffusion(), FEW, indices=[0, 1], labels=[0, 0], seed=0)
    assert len(drawn) == 2 * 4  # two clips: the start and three of four steps
    for i, a in enumerate(drawn):
        assert all(not torch.equal(a, b) for b in drawn[i + 1 :])


def test_guidance_extrapolates_the_noise_and_leaves_the_variance():
    model = awake(TINY)
    x, t, y = inputs(TINY)
    with_class = model(x, t, y)
    without = model(x, t, torch.full_like(y, TINY.null_label))
    output = guided(model, y, 3.0)(x, t)
    noise = without[:, :3] + 3 * (with_class[:, :3] - without[:, :3])
    assert_close(output[:, :3], noise, rtol=1e-4, atol=1e-4)
    assert_close(output[:, 3:], with_class[:, 3:], rtol=1e-4, atol=1e-4)


def test_guidance_of_a_model_without_variance():
    model = awake(replace(TINY, learn_sigma=False))
    x, t, y = inputs(TINY)
    without = model(x, t, torch.full_like(y, TINY.null_label))
    expected = without + 3 * (model(x, t, y) - without)
    assert_close(guided(model, y, 3.0)(x, t), expected, rtol=1e-4, atol=1e-4)


def test_guidance_of_one_is_the_conditional_model_and_of_zero_the_unconditional():
    model = awake(TINY)
    x, t, y = inputs(TINY)
    assert torch.equal(guided(model, y, 1.0)(x, t), model(x, t, y))
    without = model(x, t, torch.full_like(y, TINY.null_label))
    assert_close(guided(model, y, 0.0)(x, t)[:, :3], without[:, :3], rtol=1e-4, atol=1e-4)


def test_guidance_is_one_call():
    model = awake(TINY)
    rows = []
    model.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    x, t, y = inputs(TINY)
    guided(model, y, 7.0)(x, t)
    assert rows == [4]


def test_an_unconditional_model():
    model = awake(replace(TINY, num_classes=None))
    latents = sample(model, GaussianDiffusion(), FEW, indices=[0, 1], seed=0)
    assert latents.shape == (2, 3, 3, 4, 6)
    assert latents.isfinite().all()
    assert not latents.requires_grad


@pytest.mark.parametrize(
    ("classes", "changes", "labels", "message"),
    [
        (5, {"steps": 1001}, [0, 1], "steps=1001 must be from 2 to 1000"),
        (5, {"steps": 999, "spacing": "stride"}, [0, 1], "cannot give exactly 999 of 1000"),
        (5, {}, None, r"class-conditional. Give one label per clip, or 5 \(the null label\)"),
        (5, {}, [0], "1 labels for 2 clips"),
        (5, {}, [0, 6], "labels from 0 to 6"),
        (5, {}, [-1, 2], "labels from -1 to 2"),
        (None, {"guidance": 7.0}, None, "guidance=7.0 needs a class-conditional model"),
        (None, {}, [0, 1], "unconditional model"),
    ],
)
def test_requests_that_do_not_fit(classes, changes, labels, message):
    model = awake(replace(TINY, num_classes=classes))
    with pytest.raises(ValueError, match=message):
        sample(
            model,
            GaussianDiffusion(),
            replace(FEW, **changes),
            indices=[0, 1],
            labels=labels,
            seed=0,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 1}, "steps=1 must be at least 2"),
        ({"eta": 0.5}, "requires method=ddim, not"),
        ({"eta": 2.0, "method": "ddim"}, "eta=2.0 must be at most 1"),
        ({"guidance": -1.0}, "guidance=-1.0 must not be negative"),
        ({"guidance": 2.0, "guidance_interval": (0.5, 0.5)}, "0 <= low < high <= 1"),
        ({"guidance": 2.0, "guidance_interval": (0.5, 2.0)}, "0 <= low < high <= 1"),
        ({"guidance_interval": (0.1, 0.5)}, "no effect at guidance=1"),
        ({"method": "euler", "spacing": "stride"}, "requires method=ddpm or ddim, not euler"),
        (
            {"method": "dpm_solver", "spacing": "stride"},
            "requires method=ddpm or ddim, not dpm_solver",
        ),
        ({"method": "heun", "steps": 0}, "steps=0 must be at least 1"),
    ],
)
def test_bad_sampler_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**changes)


@pytest.mark.parametrize("changes", [{"method": "rk4"}, {"spacing": "even"}])
def test_unknown_choices(changes):
    """Refused by the config, or by the type checker where tests run under one."""
    with pytest.raises((ValueError, TypeError), match=next(iter(changes))):
        SamplerConfig(**changes)
