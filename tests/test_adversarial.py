"""The discriminator, the adversarial term of Eq. 5 by hand, and its step under accumulation."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.testing import assert_close

from engine.losses import StepInfo
from engine.memory import measure_step_memory
from engine.run_folder import read_log
from tests.builders.toy_trainer import toy_trainer
from vae import DiagonalGaussian
from vae.adversarial import AdversarialConfig, AdversarialLoss
from vae.discriminator import Discriminator, DiscriminatorConfig
from vae.losses import REFERENCE_VALUES, VAELoss, VAELossConfig


def info(step, share=1.0, last=True):
    return StepInfo(0, step, range(1), share, last)


# discriminator


@pytest.mark.parametrize(
    ("layers", "field"), [(1, (7, 16, 16)), (2, (13, 34, 34)), (3, (25, 70, 70))]
)
def test_what_a_logit_sees(layers, field):
    torch.manual_seed(0)
    config = DiscriminatorConfig(channels=16, layers=layers)
    model = Discriminator(config).double()
    for i, layer in enumerate(model.layers):  # normalization would see the whole clip
        model.layers[i] = nn.Identity() if isinstance(layer, nn.GroupNorm) else layer
    t, h, w = field
    video = torch.randn(1, 3, 2 * t, 2 * h, 2 * w, dtype=torch.float64, requires_grad=True)
    logits = model(video)[0, 0]
    center = tuple(n // 2 for n in logits.shape)
    logits[center].backward()
    seen = video.grad.abs().sum((0, 1)).nonzero()
    extent = seen.amax(0) - seen.amin(0) + 1
    assert extent.tolist() == [t, h, w]


def test_the_discriminator_takes_images_and_videos_and_refuses_what_is_too_small():
    model = Discriminator(DiscriminatorConfig(channels=16))
    assert model(torch.zeros(2, 3, 17, 32, 64)).shape == (2, 1, 5, 2, 6)
    assert model(torch.zeros(2, 3, 1, 24, 24)).shape == (2, 1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"at least 24 x 24, got 16 x 64\."):
        model(torch.zeros(1, 3, 1, 16, 64))
    with pytest.raises(ValueError, match="multiple of 16"):
        DiscriminatorConfig(channels=8)


def test_clips_of_a_batch_do_not_matter_to_each_other():
    torch.manual_seed(0)
    model = Discriminator(DiscriminatorConfig(channels=16, layers=2)).double()
    video = torch.randn(3, 3, 5, 16, 16, dtype=torch.float64)
    assert_close(model(video), torch.cat([model(x) for x in video.split(1)]))


# the term by hand


class Slope(nn.Module):
    """Logits that are `a` times the video."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, video):
        return self.a * video


def full(clips, value):
    return torch.full((clips, 3, 1, 8, 8), value, dtype=torch.float64)


def by_hand(**values):
    """Model w * x with x = 0.5 everywhere, w = 1, target 0; discriminator 2 * video."""
    config = AdversarialConfig(**{"smoothing": 0.0, **values})
    loss = VAELoss(VAELossConfig(perceptual="none", kl_weight=0.0))
    slope = Slope(2.0)
    gan = AdversarialLoss(config, loss, slope, Accelerator())  # type: ignore[arg-type]
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    posterior = DiagonalGaussian(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1))

    def step(number, share=1.0, last=True, target=0.0):
        weight.grad = None
        y, place = weight * full(1, 0.5), info(number, share, last)
        found, clips = gan.generator_loss(y, posterior, full(1, target), place, [weight])
        found["loss"].backward()
        return found, clips

    return gan, slope, weight, step


def test_the_adaptive_weight_in_closed_form():
    gan, slope, weight, step = by_hand()
    # d MAE / dw = 0.5, d (-logit) / dw = -2 * 0.5: their ratio is 0.5
    first, _ = step(0)
    assert first["gan_weight"] == 0  # only measured
    assert_close(weight.grad.item(), REFERENCE_VALUES * 0.5)
    assert_close(first["loss"].item(), REFERENCE_VALUES * 0.5)
    assert_close(gan.ratio.item(), 0.5)
    second, clips = step(1)
    assert_close(second["gan_weight"].item(), 0.8 * 0.5)
    assert_close(second["gan"].item(), -1.0)
    assert_close(second["loss"].item(), REFERENCE_VALUES * (0.5 - 0.4))
    assert_close(weight.grad.item(), REFERENCE_VALUES * (0.5 - 0.4 * 1.0))
    assert slope.a.grad is None  # the model's step leaves the discriminator alone
    assert slope.a.requires_grad
    assert_close(clips["fake"], full(1, 0.5))
    assert not clips["fake"].requires_grad


def test_perceptual_network_and_discriminator_are_run_once_for_the_weight_and_the_gradient():
    gan, slope, weight, step = by_hand()
    calls = []

    def perceptual(x, y):
        calls.append("perceptual")
        return 2 * (x - y).mean((1, 3, 4))  # b t

    gan.loss.perceptual = perceptual
    slope.register_forward_hook(lambda *_: calls.append("discriminator"))
    step(0)
    assert calls == ["perceptual", "discriminator"]
    # d (MAE + LPIPS) / dw = 0.5 + 2 * 0.5 is in the weight and in the gradient
    assert_close(gan.ratio.item(), 1.5)
    assert_close(weight.grad.item(), REFERENCE_VALUES * 1.5)


def test_gradients_of_micro_batches_are_added_before_their_norm_is_taken():
    gan, _, _, step = by_hand()
    step(0, share=0.75, last=False, target=0.0)  # d MAE / dw = 0.5
    assert gan.ratio == 0
    step(0, share=0.25, target=1.0)  # d MAE / dw = -0.5, so 0.25 in all
    assert_close(gan.ratio.item(), 0.25)


def test_the_ratio_is_smoothed_limited_and_saved():
    gan, slope, _, step = by_hand(smoothing=0.5)
    step(0)
    with torch.no_grad():
        slope.a.fill_(4.0)
    step(1)  # running norms: MAE 0.5; GAN (1 + 2) / 2
    assert_close(gan.ratio.item(), 0.5 / 1.5)
    other = by_hand(smoothing=0.5)[0]
    other.load_state_dict(gan.state_dict())
    assert other.ratio == gan.ratio
    limited = by_hand(max_ratio=0.125)
    limited[3](0)
    assert limited[0].ratio == 0.125


def test_a_bf16_reconstruction_is_compared_and_weighed_in_float32():
    gan, _, _, _ = by_hand()
    torch.manual_seed(0)
    weight = torch.rand(3, 3, requires_grad=True)
    video = torch.rand(1, 3, 5, 16, 16)
    posterior = DiagonalGaussian(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1))
    ratios = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            y = torch.einsum("i o, b i t h w -> b o t h w", weight, 1 - video)
        assert y.dtype == dtype
        values, clips = gan.generator_loss(y, posterior, video, info(0), [weight])
        assert {value.dtype for value in values.values()} == {torch.float32}
        assert clips["fake"].dtype == torch.float32
        ratios.append(gan.ratio.item())
    assert_close(ratios[0], ratios[1], rtol=0.02, atol=0)


def test_a_gradient_that_is_not_finite_leaves_the_ratio_alone():
    gan, _, _, step = by_hand()
    step(0)
    step(1, target=float("nan"))
    assert_close(gan.ratio.item(), 0.5)


def test_start_warm_up_and_fixed_weight():
    _, _, weight, step = by_hand(weighting="fixed", start_step=2, warmup_steps=4)
    found, clips = step(1)
    assert "gan" not in found
    assert not clips
    assert [step(s)[0]["gan_weight"].item() for s in (2, 4, 6, 9)] == pytest.approx(
        [0, 0.4, 0.8, 0.8]
    )
    assert_close(weight.grad.item(), REFERENCE_VALUES * (0.5 - 0.8))


def test_the_hinge_loss_and_r1_by_hand():
    gan, slope, _, _ = by_hand(r1_weight=3.0)
    clips = {"real": full(2, 0.1), "fake": full(2, 0.25)}
    values, _ = gan.discriminator_loss(slope, clips, info(0))
    assert_close(values["hinge"].item(), 0.5 * ((1 - 0.2) + (1 + 0.5)))
    r1 = 0.5 * 192 * (2.0 / 192) ** 2  # half the squared gradient of the mean logit
    assert_close(values["r1"].item(), r1)
    assert_close(values["loss"].item(), values["hinge"].item() + 3 * r1)
    values["loss"].backward()
    expected = 0.5 * (-0.1 + 0.25) + 3 * 2.0 / 192
    assert_close(slope.a.grad.item(), expected)


@pytest.mark.parametrize(
    "values", [{"smoothing": 1.0}, {"start_step": -1}, {"weight": -1}, {"max_ratio": 0}]
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        AdversarialConfig(**values)


# the step of both modules


def toy_run(folder, *, batches=None, measure=False, steps=4, **values):
    """Train the toy; the trainer, and all weights, which say it all."""
    trainer, step_loss = toy_trainer(folder, steps=steps, **values)

    def source(start):
        for step in range(start, steps):
            # frames and size change from step to step, as with buckets
            size = (4, 3, 1 + 4 * (step % 2), 8 + 4 * (step % 3), 8)
            generator = torch.Generator().manual_seed(step)
            yield {"video": torch.rand(size, generator=generator, dtype=torch.float64)}

    if measure:
        zeros = {"video": torch.zeros(4, 3, 5, 16, 8, dtype=torch.float64)}
        assert measure_step_memory(trainer, zeros, step_loss) > 0
    trainer.run(batches or source, step_loss)
    return trainer, {k: v for p in trainer.trained for k, v in p.module.state_dict().items()}


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_accumulation_gives_both_modules_the_update_of_one_big_batch(micro_batch_size, tmp_path):
    _, whole = toy_run(tmp_path / "whole")
    _, parts = toy_run(tmp_path / "parts", micro_batch_size=micro_batch_size)
    assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    for x, y in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "parts"), strict=True):
        for name in {
            "loss",
            "grad_norm",
            "discriminator/loss",
            "discriminator/grad_norm",
        } & x.keys():
            assert_close(x[name], y[name], rtol=1e-6, atol=0)  # Adam does not see the scale
    initial = toy_run(tmp_path / "none", learning_rate=1e-30, steps=2)[1]
    assert not torch.allclose(whole["layers.0.weight"], initial["layers.0.weight"], atol=1e-6)


def test_the_discriminator_begins_at_its_start_and_has_its_own_settings(tmp_path):
    toy_run(tmp_path)
    first, *others = read_log(tmp_path)
    assert not any(name.startswith(("discriminator/", "gan")) for name in first)
    for line in others:
        assert line["discriminator/learning_rate"] == 1e-4
        assert line["discriminator/grad_norm"] > 0
        assert line["seconds/discriminator"] > 0
    assert others[0]["gan_weight"] == 0
    assert others[1]["gan_weight"] > 0
    assert read_log(tmp_path)[-1]["clips_seen"] == 16


def test_a_measured_step_changes_nothing(tmp_path):
    _, plain = toy_run(tmp_path / "plain")
    _, measured = toy_run(tmp_path / "measured", measure=True)
    assert_close(measured, plain, rtol=0, atol=0)
    logs = [[x["loss"] for x in read_log(tmp_path / n)] for n in ("plain", "measured")]
    assert logs[0] == logs[1]


def test_memory_that_does_not_suffice_is_said_before_the_run(tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("tried to allocate 1 TiB")

    monkeypatch.setattr("engine.train.Trainer.add_gradients", fail)
    with pytest.raises(ValueError, match="lower micro_batch_size"):
        toy_run(tmp_path, measure=True)
    assert not list(tmp_path.iterdir())


def test_a_bad_batch_is_passed_over_by_both_modules_and_the_run_goes_on(tmp_path):
    def source(bad):
        def batches(start):
            for step in range(start, 4):
                video = torch.rand(
                    4, 3, 1, 8, 8, generator=torch.Generator().manual_seed(step)
                ).double()
                if step == bad:
                    video[2, 0, 0, 3, 3] = float("nan")
                yield {"video": video}

        return batches

    trainer, weights = toy_run(tmp_path / "run", batches=source(2))
    assert trainer.guard.skipped == 1
    assert all(value.isfinite().all() for value in weights.values())
    log = read_log(tmp_path / "run")
    assert [line["skipped_steps"] for line in log] == [0, 0, 1, 1]
    assert [("loss" in line) for line in log] == [True, True, False, True]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    _, resumed = toy_run(tmp_path / "resumed", batches=source(2), steps=3)
    trainer, resumed = toy_run(tmp_path / "resumed", batches=source(2))
    assert_close(resumed, weights, rtol=0, atol=0)
    assert trainer.guard.skipped == 1


def test_a_spike_is_passed_over_and_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("engine.guard.ENOUGH", 2)

    def batches(scale):
        def source(start):
            for step in range(start, 5):
                video = torch.rand(
                    4, 3, 1, 8, 8, generator=torch.Generator().manual_seed(step)
                ).double()
                yield {"video": video * (scale if step == 3 else 1)}

        return source

    trainer, _ = toy_run(
        tmp_path / "run", batches=batches(1e4), steps=5, spike_factor=10, learning_rate=1e-30
    )
    assert trainer.guard.skipped == 1
    assert "step 4 skipped: " in caplog.text
    assert "times the usual" in caplog.text
    assert "loss" not in read_log(tmp_path / "run")[3]
    moments = trainer.trained[0].optimizer.state_dict()["state"][0]
    assert moments["step"] == 4  # of 5
    assert moments["exp_avg_sq"].max() < 1e8
