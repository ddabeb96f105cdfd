"""The diffusion process: reference values, closed forms, and what the loss trains."""

import math

import pytest
import torch
from torch.testing import assert_close

from latte.diffusion import (
    DiffusionConfig,
    GaussianDiffusion,
    discretized_log_likelihood,
    gaussian_kl,
)
from tests.builders.vectors import load_case, normal


def reference():
    """The reference's inputs and outputs with axes b c t h w."""
    case = load_case("diffusion")
    seed, shape = case.info["seed"], list(case.info["shape"])
    x0, noise = normal(seed, shape), normal(seed + 1, shape)
    shape[2] *= 2
    output = 0.5 * normal(seed + 2, shape)
    outputs = {k: v.transpose(1, 2) if v.ndim == 5 else v for k, v in case.outputs.items()}
    x0, noise, output = (a.transpose(1, 2) for a in (x0, noise, output))
    return x0, noise, output, torch.tensor(case.info["t"]), outputs


def test_reference_noising_and_losses():
    x0, noise, output, t, expected = reference()
    diffusion = GaussianDiffusion()
    x_t = diffusion.add_noise(x0, noise, t)
    assert_close(x_t, expected["x_t"], rtol=1e-5, atol=1e-5)
    seen = []

    def model_fn(x, timesteps):
        seen.append((x, timesteps))
        return output

    losses = diffusion.training_loss(model_fn, x0, t, noise)
    assert torch.equal(seen[0][0], x_t)
    assert torch.equal(seen[0][1], t)
    for name in ("mse", "vb", "loss"):
        assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-5)


def test_reference_prediction():
    x_t, _, output, t, expected = reference()
    prediction = GaussianDiffusion().predict(output, x_t, t)
    assert_close(prediction.mean, expected["p_mean"], rtol=1e-5, atol=1e-5)
    assert_close(prediction.logvar, expected["p_logvar"], rtol=1e-5, atol=1e-5)
    assert_close(prediction.x0, expected["p_pred_x0"], rtol=1e-5, atol=1e-5)
    assert torch.equal(prediction.noise, output[:, :4])


def test_a_schedule_worked_out_by_hand():
    diffusion = GaussianDiffusion(DiffusionConfig(steps=3, beta_start=0.1, beta_end=0.5))
    assert_close(diffusion.beta.tolist(), [0.1, 0.3, 0.5])
    assert_close(diffusion.alpha_bar.tolist(), [0.9, 0.9 * 0.7, 0.9 * 0.7 * 0.5])
    assert_close(diffusion.posterior_variance.tolist(), [0.0, 0.3 * 0.1 / 0.37, 0.5 * 0.37 / 0.685])
    x = torch.ones(1, 1, 1, 1, 1)
    mean, logvar = diffusion.posterior(2 * x, 3 * x, torch.tensor([2]))
    by_hand = (2 * math.sqrt(0.63) * 0.5 + 3 * math.sqrt(0.5) * 0.37) / 0.685
    assert_close(mean.item(), by_hand, rtol=1e-6, atol=0)
    assert_close(logvar.item(), math.log(0.5 * 0.37 / 0.685), rtol=1e-6, atol=0)


def test_the_default_schedule_ends_in_noise():
    diffusion = GaussianDiffusion()
    assert diffusion.alpha_bar.dtype == torch.float64
    assert_close(diffusion.beta[[0, -1]].tolist(), [1e-4, 0.02])
    assert diffusion.alpha_bar[-1] < 5e-5


def test_the_true_noise_gives_back_x0_and_the_posterior():
    diffusion = GaussianDiffusion()
    x0, noise, t = normal(1, (3, 2, 2, 2, 2)), normal(2, (3, 2, 2, 2, 2)), torch.tensor([0, 9, 300])
    x_t = diffusion.add_noise(x0, noise, t)
    prediction = diffusion.predict(noise, x_t, t)
    assert_close(prediction.x0, x0, rtol=1e-4, atol=1e-4)
    assert_close(prediction.mean, diffusion.posterior(x0, x_t, t)[0], rtol=1e-4, atol=1e-4)


def test_v_moves_the_variance_between_its_bounds():
    diffusion = GaussianDiffusion()
    t = torch.tensor([0, 1, 500])
    x = normal(1, (3, 1, 1, 1, 1))
    for v, bound in ((1.0, diffusion.beta), (-1.0, diffusion.posterior_variance)):
        logvar = diffusion.predict(torch.cat([x, torch.full_like(x, v)], 1), x, t).logvar
        wanted = bound[[1, 1, 500]] if v < 0 else bound[t]  # at t = 0 the posterior's of t = 1
        assert_close(logvar.flatten(), wanted.log().float(), rtol=1e-5, atol=1e-5)
    without = diffusion.predict(x, x, t).logvar  # no v: the forward step's variance
    assert_close(without.flatten(), diffusion.beta[t].log().float(), rtol=1e-5, atol=1e-5)


def test_a_perfect_prediction_has_no_loss():
    """The true noise and the posterior's variance: mse 0, and no KL above t = 0."""
    diffusion = GaussianDiffusion()
    x0, noise, t = normal(1, (2, 2, 2, 2, 2)), normal(2, (2, 2, 2, 2, 2)), torch.tensor([5, 600])
    output = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    losses = diffusion.training_loss(lambda x, s: output, x0, t, noise)
    assert torch.equal(losses["mse"], torch.zeros(2))
    assert_close(losses["vb"], torch.zeros(2), rtol=0, atol=1e-5)


def test_the_bound_trains_the_variance_only_and_mse_the_noise_only():
    x0, noise, output, t, _ = reference()
    output.requires_grad_()
    losses = GaussianDiffusion().training_loss(lambda x, s: output, x0, t, noise)
    from_vb, from_mse = (
        torch.autograd.grad(losses[k].sum(), output, retain_graph=True)[0] for k in ("vb", "mse")
    )
    assert from_vb[:, :4].count_nonzero() == 0
    assert from_vb[:, 4:].count_nonzero() > 0
    assert from_mse[:, :4].count_nonzero() > 0
    assert from_mse[:, 4:].count_nonzero() == 0


def test_without_a_learned_variance_the_loss_is_the_mse():
    x0, noise, output, t, expected = reference()
    losses = GaussianDiffusion().training_loss(lambda x, s: output[:, :4], x0, t, noise)
    assert losses.keys() == {"loss", "mse"}
    assert_close(losses["loss"], expected["mse"], rtol=1e-5, atol=1e-5)


def test_maths_is_float32_whatever_the_model_computes_in():
    x0, noise, output, t, _ = reference()
    half = output.bfloat16()
    losses = GaussianDiffusion().training_loss(lambda x, s: half, x0, t, noise)
    exact = GaussianDiffusion().training_loss(lambda x, s: half.float(), x0, t, noise)
    assert torch.equal(losses["loss"], exact["loss"])
    assert losses["loss"].dtype == torch.float32


def test_fewer_steps_keep_their_noise_levels():
    full = GaussianDiffusion()
    part = GaussianDiffusion(timesteps=[0, 100, 999])
    assert torch.equal(part.alpha_bar, full.alpha_bar[[0, 100, 999]])
    assert_close((1 - part.beta).prod(), part.alpha_bar[-1])
    seen = []
    x = normal(1, (1, 2, 1, 1, 1))
    part.training_loss(lambda x, s: seen.append(s) or x, x, torch.tensor([1]), x)
    assert seen[0].tolist() == [100]


def test_kl_of_gaussians():
    zero, one = torch.zeros(()), torch.ones(())
    assert gaussian_kl(one, zero, one, zero) == 0
    assert_close(gaussian_kl(zero, zero, 2 * one, zero), 2 * one)  # (2 - 0)^2 / 2
    expected = (math.log(4) + 1 / 4 - 1) / 2
    assert_close(gaussian_kl(zero, zero, zero, torch.tensor(4.0).log()).item(), expected)


def test_the_bins_of_the_likelihood_share_out_all_probability():
    bins = torch.linspace(-1, 1, 256)
    for mean, std in ((0.3, 0.05), (-0.9, 0.2), (0.0, 3.0)):
        log_std = torch.tensor(std).log()
        total = discretized_log_likelihood(bins, torch.tensor(mean), log_std).exp().sum()
        assert_close(total.item(), 1.0, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DiffusionConfig(steps=1), "steps=1 must be at least 2"),
        (lambda: DiffusionConfig(beta_start=0.5, beta_end=0.1), "beta_start=0.5 and beta_end=0.1"),
        (lambda: GaussianDiffusion(timesteps=[]), "must increase within 0 .. 999"),
        (lambda: GaussianDiffusion(timesteps=[3, 3]), "must increase within 0 .. 999"),
        (lambda: GaussianDiffusion(timesteps=[-1, 3]), "must increase within 0 .. 999"),
        (lambda: GaussianDiffusion(timesteps=[3, 1000]), "must increase within 0 .. 999"),
    ],
)
def test_bad_schedules(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_output_of_the_wrong_width():
    x0, noise, output, t, _ = reference()
    with pytest.raises(ValueError, match="gave 5 channels for latents of 4"):
        GaussianDiffusion().training_loss(lambda x, s: output[:, :5], x0, t, noise)


def test_v_and_noise_say_the_same():
    """v = sqrt(a) noise - sqrt(1 - a) x_0: from either, the same x_0, noise, mean and variance."""
    by_noise, by_v = GaussianDiffusion(), GaussianDiffusion(DiffusionConfig(prediction="v"))
    x0, noise, t = normal(1, (4, 2, 2, 2, 2)), normal(2, (4, 2, 2, 2, 2)), torch.tensor(TIMES)
    x_t = by_noise.add_noise(x0, noise, t)
    a = by_noise.alpha_bar[t].view(-1, 1, 1, 1, 1).float()
    v = a.sqrt() * noise - (1 - a).sqrt() * x0
    assert_close(by_v.target(x0, noise, t), v)
    share = 0.3 * torch.ones_like(x0)
    one = by_noise.predict(torch.cat([noise, share], 1), x_t, t)
    other = by_v.predict(torch.cat([v, share], 1), x_t, t)
    for name, tolerance in (("x0", 1e-3), ("noise", 1e-4), ("mean", 1e-4), ("logvar", 0)):
        assert_close(getattr(other, name), getattr(one, name), rtol=tolerance, atol=tolerance)
    for diffusion, right in ((by_noise, noise), (by_v, v)):
        assert_close(diffusion.exact_prediction(x0, x_t, t, noise), right, rtol=1e-3, atol=1e-3)


TIMES = [0, 9, 300, 999]


def test_a_perfect_prediction_of_v_has_no_loss():
    diffusion = GaussianDiffusion(DiffusionConfig(prediction="v", min_snr_gamma=5.0))
    x0, noise, t = normal(1, (2, 2, 2, 2, 2)), normal(2, (2, 2, 2, 2, 2)), torch.tensor([5, 600])
    output = torch.cat([diffusion.target(x0, noise, t), -torch.ones_like(noise)], dim=1)
    losses = diffusion.training_loss(lambda x, s: output, x0, t, noise)
    assert_close(losses["loss"], torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", ["noise", "v"])
def test_min_snr_weights_the_error_of_x0(prediction):
    """The weighted loss is min(SNR, gamma) times the squared error of x_0 that the output means."""
    diffusion = GaussianDiffusion(DiffusionConfig(prediction=prediction, min_snr_gamma=5.0))
    x0, noise, t = normal(1, (4, 2, 2, 2, 2)), normal(2, (4, 2, 2, 2, 2)), torch.tensor(TIMES)
    output = normal(3, x0.shape)
    loss = diffusion.training_loss(lambda x, s: output, x0, t, noise)["loss"]
    x_t = diffusion.add_noise(x0, noise, t)
    error = (diffusion.predict(output, x_t, t).x0 - x0).square().flatten(1).mean(dim=1)
    snr = (diffusion.alpha_bar / (1 - diffusion.alpha_bar))[t]
    assert snr[0] > 5 > snr[-1]
    assert_close(loss, snr.clamp(max=5).float() * error, rtol=2e-3, atol=1e-5)


def test_min_snr_weights_in_numbers():
    """alpha_bar 0.9, 0.63: SNR 9 and 1.7027."""

    def weights(**options):
        config = DiffusionConfig(steps=2, beta_start=0.1, beta_end=0.3, **options)
        return GaussianDiffusion(config).loss_weight.tolist()

    assert weights() == [1, 1]
    assert_close(weights(min_snr_gamma=5.0), [5 / 9, 1.0])
    snr = 0.63 / 0.37
    assert_close(weights(min_snr_gamma=5.0, prediction="v"), [5 / 10, snr / (snr + 1)])


def test_frame_weights():
    """Weights 1 / t are the mean; a frame of weight 0 is as if it were not there."""
    x0, noise, output, t, _ = reference()
    diffusion, frames = GaussianDiffusion(), x0.shape[2]

    def losses(weight=None, keep=frames):
        cut = [z[:, :, :keep] for z in (x0, noise, output)]
        return diffusion.training_loss(lambda x, s: cut[2], cut[0], t, cut[1], weight)

    weight = torch.full((len(x0), frames), 1 / frames)
    assert_close(losses(weight), losses(), rtol=1e-5, atol=1e-6)
    weight = torch.full((len(x0), frames), 1 / (frames - 1))
    weight[:, -1] = 0
    assert_close(losses(weight), losses(keep=frames - 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_snr_gamma": 0.0}, "min_snr_gamma=0.0 must be above 0"),
        ({"prediction": "x0"}, "prediction"),
    ],
)
def test_bad_objectives(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DiffusionConfig(**changes)
