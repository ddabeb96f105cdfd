"""Rectified flow: its loss, its times, and paths whose end is known."""

import math

import pytest
import torch
from torch.testing import assert_close

from common.seeding import generator
from latte.diffusion import DiffusionConfig, GaussianDiffusion
from latte.diffusion_process import make_process
from latte.flow import FlowConfig, RectifiedFlow, integrate
from tests.builders.vectors import normal

MEAN, STD = 2.0, 0.5


def gaussian_velocity(x, t):
    """The exact velocity for data from N(MEAN, STD^2): E[noise - x_0 | x_t]."""
    s = (t / 1000).view(-1, 1, 1, 1, 1)
    total = (1 - s) ** 2 * STD**2 + s**2
    return (s - (1 - s) * STD**2) / total * (x - (1 - s) * MEAN) - MEAN


def error(method, steps):
    """Root mean square distance from the exact end of the path, MEAN + STD z."""
    start = normal(0, (1, 1, 1, 50, 50))
    end = integrate(gaussian_velocity, start, steps, method=method)
    return (end - MEAN - STD * start).square().mean().sqrt().item()


def test_the_orders_of_euler_and_heun():
    """Half the step: half the error of Euler, a quarter of Heun's; Heun wins at equal calls."""
    euler, heun = ([error(method, steps) for steps in (40, 80)] for method in ("euler", "heun"))
    assert 1.8 < euler[0] / euler[1] < 2.2
    assert 3.5 < heun[0] / heun[1] < 4.6
    assert error("heun", 20) < euler[0] / 4


def test_the_samples_have_the_datas_mean_and_variance():
    start = normal(0, (1, 1, 1, 100, 100))
    x = integrate(gaussian_velocity, start, 50, method="heun")
    assert_close([x.mean().item(), x.std().item()], [MEAN, STD], rtol=0, atol=0.02)


def test_a_straight_path_takes_one_step():
    x0, start = normal(1, (2, 1, 1, 2, 2)), normal(2, (2, 1, 1, 2, 2))
    for method in ("euler", "heun"):
        assert_close(integrate(lambda x, t: start - x0, start, 1, method=method), x0)


def test_the_loss_is_the_squared_error_of_the_velocity_along_the_path():
    x0, noise = normal(1, (2, 1, 3, 2, 2)), normal(2, (2, 1, 3, 2, 2))
    t, seen = torch.tensor([0.25, 1.0]), []

    def model_fn(x, timesteps):
        seen.append((x, timesteps))
        return noise - x0 + 3

    losses = RectifiedFlow().training_loss(model_fn, x0, t, noise)
    assert_close(losses["loss"], torch.full((2,), 9.0))
    x, timesteps = seen[0]
    assert_close(x[0], 0.75 * x0[0] + 0.25 * noise[0])
    assert_close(x[1], noise[1])
    assert timesteps.tolist() == [250, 1000]
    weight = torch.tensor([[0.5, 0.0, 0.0]] * 2)
    losses = RectifiedFlow().training_loss(model_fn, x0, t, noise, weight)
    assert_close(losses["loss"], torch.full((2,), 4.5))


def test_logit_normal_times():
    """The logits of the times have the mean and the standard deviation asked for."""

    def logits(config):
        g = generator(0)
        return torch.cat([RectifiedFlow(config).draw_time(g) for _ in range(4000)]).logit()

    drawn = logits(FlowConfig(mean=0.5, std=0.8))
    assert_close([drawn.mean().item(), drawn.std().item()], [0.5, 0.8], rtol=0, atol=0.04)
    uniform = logits(FlowConfig(times="uniform")).sigmoid()
    assert_close(uniform.std().item(), 1 / math.sqrt(12), rtol=0.03, atol=0)


def test_quarters_of_the_way():
    share = torch.tensor([0.0, 0.3, 0.999])
    assert RectifiedFlow().timestep_at(share).equal(share)
    assert GaussianDiffusion().timestep_at(share).tolist() == [0, 300, 999]


def test_requests_that_do_not_fit():
    x = normal(1, (2, 1, 1, 2, 2))
    with pytest.raises(ValueError, match="Set learn_sigma to false"):
        RectifiedFlow().training_loss(lambda x, t: x.repeat(1, 2, 1, 1, 1), x, torch.ones(2), x)
    with pytest.raises(ValueError, match=r"std=0\.0 must be above 0"):
        FlowConfig(std=0.0)
    with pytest.raises(ValueError, match="times=logit_normal, not uniform"):
        FlowConfig(times="uniform", mean=1.0)
    with pytest.raises((ValueError, TypeError), match="times"):
        FlowConfig(times="cosine")
    with pytest.raises(ValueError, match="flow replaces diffusion"):
        make_process(DiffusionConfig(prediction="v"), FlowConfig())
    assert isinstance(make_process(DiffusionConfig(), FlowConfig()), RectifiedFlow)
