"""IV-VAE: the released behavior, inflation, norms and resampling, saving, refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.builders.tiny_vae import TINY, make, scramble, tiny, video
from tests.builders.vectors import load_case
from vae import DiagonalGaussian, ImageVAE, VAEConfig, VideoVAE, inflate, weights_hash
from vae.blocks import NormSiLU, RMSNorm
from vae.config import PRESETS
from vae.convert import from_released, to_released
from vae.resample import enlarge, shrink


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def released():
    case = load_case("ivvae_z4_dim8")
    return case, from_released(case.weights(), VAEConfig(z_dim=4, dim=8)).eval()


@pytest.mark.parametrize("index", [0, 1, 2])
def test_agrees_with_the_released_code(released, index):
    case, model = released
    info = case.info["cases"][index]
    x = np.random.RandomState(info["input_seed"]).uniform(-1, 1, info["input_shape"])
    with torch.no_grad():
        posterior = model.encode(torch.from_numpy(x).float())
        result = {"mean": posterior.mean, "logvar": posterior.logvar}
        result["recon"] = model.decode(posterior.mean)
    for name, value in result.items():
        assert_close(value, case.outputs[f"{name}.{index}"], rtol=1e-5, atol=1e-5)


def test_released_weights_survive_the_way_there_and_back(released):
    case, model = released
    weights, back = case.weights(), to_released(model)
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        assert_close(back[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(("z_dim", "dim"), [(8, 8), (16, 8), (16, 12)])
def test_weights_of_every_released_size_survive_the_way_there_and_back(z_dim, dim):
    model = VideoVAE(VAEConfig(z_dim=z_dim, dim=dim))
    weights = to_released(model)
    assert len(weights) == 362
    assert weights_hash(from_released(weights, model.config)) == weights_hash(model)
    with pytest.raises(ValueError, match=f"z_dim=4, dim={dim}: "):
        from_released(weights, VAEConfig(z_dim=4, dim=dim))


def test_a_checkpoint_that_does_not_fit_names_every_kind_of_difference(released):
    weights = released[0].weights()
    weights["extra"] = weights.pop("conv1.conv_2d.bias")
    weights["conv2.conv_2d.bias"] = torch.zeros(7)
    turned = weights["encoder.conv1.conv_2d.weight"].transpose(0, 1)
    weights["encoder.conv1.conv_2d.weight"] = turned  # as many values
    with pytest.raises(ValueError, match=r"missing conv1.conv_2d.bias") as error:
        from_released(weights, VAEConfig(z_dim=4, dim=8))
    assert "unexpected extra" in str(error.value)
    assert "conv2.conv_2d.bias" in str(error.value)
    assert "(7,)" in str(error.value)
    assert "(3, 8, 3, 3)" in str(error.value)


@pytest.mark.parametrize("preset", ["ivvae", "ivvae_3d3d", "ktc", "baseline", "baseline_gcconv"])
def test_an_inflated_vae_repeats_what_the_image_vae_does(preset):
    config = tiny(preset)
    image = scramble(ImageVAE(config.image())).double().eval()
    model = inflate(image, config).double().eval()
    x = video(9, b=2)
    with torch.no_grad():
        frames = image.decode(image.encode(x).mean)
        y = model.decode(model.encode(x).mean)
    shown = [0, 4, 4, 4, 4, 8, 8, 8, 8]  # the regular initialization: all as their group's last
    if config.branches == 2:
        shown[1], shown[5] = 1, 5  # but keyframes themselves
    assert_close(y, frames[:, :, shown])


@pytest.mark.parametrize("groups", [1, 2])
def test_enlarging_by_sums_of_the_kernel_equals_repeating_pixels(groups):
    x, weight, bias = normal(2, 4, 5, 3), normal(6, 4 // groups, 3, 3), normal(6)
    large = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
    expected = F.conv2d(large, weight, bias, padding=1, groups=groups)
    assert_close(enlarge(x, weight, bias, groups=groups), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_shrinking_pads_the_bottom_and_the_right(groups):
    x, weight, bias = normal(2, 4, 6, 4), normal(4, 4 // groups, 3, 3), normal(4)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2, groups=groups)
    assert_close(shrink(x, weight, bias, groups=groups), expected, rtol=1e-12, atol=1e-12)


def test_the_norm_is_the_released_one_and_learns_alike():
    norm = NormSiLU(6, branches=2).double()
    norm.gain.data.uniform_(0.5, 2.0)
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    halves = [F.normalize(half, dim=1) * 3**0.5 for half in x.chunk(2, dim=1)]
    expected = F.silu(torch.cat(halves, dim=1) * norm.gain.view(6, 1, 1))
    assert_close(norm(x), expected)
    with torch.no_grad():
        assert_close(norm(x), expected)
    assert_close(norm(torch.zeros_like(x)), torch.zeros_like(x))


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_norms_are_computed_in_float32_under_bfloat16(how):
    norm = RMSNorm(64, branches=1)
    x = (100 + torch.randn(1, 64, 4, 4)).bfloat16()
    expected = norm(x.float())
    if how == "weights":
        y = norm.bfloat16()(x)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            y = norm(x)
    assert y.dtype == torch.bfloat16
    assert_close(y, expected.bfloat16(), rtol=0, atol=0)


def test_inflation_refuses_an_image_vae_of_another_shape():
    with pytest.raises(ValueError, match="starts from"):
        inflate(ImageVAE(VAEConfig(z_dim=8, dim=4).image()), TINY)


def test_the_image_vae_sees_frames_one_by_one():
    model = scramble(ImageVAE(TINY.image())).double().eval()
    x = video(3)
    with torch.no_grad():
        together = model.encode(x).mean
        alone = [model.encode(x[:, :, t : t + 1]).mean for t in range(3)]
    assert_close(together, torch.cat(alone, dim=2))


def test_both_branches_can_be_seen_and_the_right_one_is_chosen():
    model = make()
    z = torch.randn(1, 4, 3, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        branches, y = model.decode_branches(z), model.decode(z)
    chosen = [0, 0, 1, 1, 1, 0, 1, 1, 1]
    assert_close(y, torch.stack([branches[:, k, :, t] for t, k in enumerate(chosen)], dim=2))
    assert not torch.allclose(branches[:, 0], branches[:, 1])


EIGHTFOLD = tiny("ivvae", z_dim=32, temporal_downsample=(True, True, True))  # groups of 8


@pytest.mark.parametrize(
    "config", [*(tiny(name) for name in PRESETS if name != "ivvae_dim96"), EIGHTFOLD]
)
def test_every_parameter_learns(config):
    model = scramble(VideoVAE(config))
    x = video(17).float()
    y, posterior = model(x, torch.randn(1, *config.latent_shape(17, 16, 24)))
    (y.abs().mean() + posterior.kl().mean()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "ivvae_dim96"])
def test_a_step_on_images_alone_reaches_every_parameter(preset):
    """Else several processes that train together would wait for each other's gradients."""
    model = VideoVAE(tiny(preset))
    y, posterior = model(video(1, 8, 8, b=2).float(), torch.randn(2, 4, 1, 1, 1))
    (y.mean() + posterior.kl().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_residual_branches_start_at_zero():
    torch.manual_seed(0)
    model = VideoVAE(TINY)
    x = torch.randn(2, 2 * TINY.channels[-1], 4, 4)
    for layer in model.decoder.middle:
        assert_close(layer(x, None), x, rtol=0, atol=0)


@pytest.mark.parametrize("preset", ["baseline", "ivvae"])
def test_draws_of_the_posterior_start_near_its_mean(preset):
    torch.manual_seed(0)
    config = VAEConfig.preset(preset, z_dim=8, dim=8, num_blocks=1)
    for model in (VideoVAE(config), ImageVAE(config.image())):
        posterior = model.encode(video(5).float())
        noise = (posterior.sample() - posterior.mode()).std()
        assert 0.03 < noise < 0.08
        assert posterior.mode().std() > 5 * noise


def test_saving_and_loading_keeps_every_bit(tmp_path):
    model = make().float()
    model.save_pretrained(tmp_path)
    loaded = VideoVAE.from_pretrained(tmp_path)
    assert loaded.config == TINY
    assert weights_hash(loaded) == weights_hash(model)
    loaded.get_parameter("decoder.norm_out.gain").data[0] += 1e-6
    assert weights_hash(loaded) != weights_hash(model)
    with pytest.raises(ValueError, match="holds a VideoVAE, not a ImageVAE"):
        ImageVAE.from_pretrained(tmp_path)


def test_loading_from_nowhere_says_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        VideoVAE.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no VideoVAE here"):
        VideoVAE.from_pretrained(tmp_path / "missing")


def test_normalizing_is_undone_by_denormalizing():
    config = VAEConfig(z_dim=4, dim=4, latent_mean=(1.0, 2.0, 3.0, 4.0), latent_std=(2.0,))
    with torch.device("meta"):
        model = VideoVAE(config)
    z = torch.arange(4.0).view(1, 4, 1, 1, 1)
    assert_close(model.normalize(z).flatten(), torch.full((4,), -0.5))
    assert_close(model.denormalize(model.normalize(z)), z)
    for call in (model.normalize, model.denormalize):
        with pytest.raises(ValueError, match=r"shape \(1, 2, .* need b 4 t h w"):
            call(z[:, :2])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 16, 16), "4 frames, but the VAE needs 1 \\+ 4n. Use 1 or 5"),
        ((1, 3, 5, 12, 16), "height 12, but the VAE needs a multiple of 8. Use 8 or 16"),
        ((1, 3, 5, 16, 4), "width 4"),
        ((1, 4, 5, 16, 16), "need b 3 t h w"),
        ((3, 5, 16, 16), "need b 3 t h w"),
    ],
)
def test_videos_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        make().encode(torch.zeros(shape))


def test_integers_and_wrong_latents_are_refused():
    with pytest.raises(ValueError, match="float"):
        make().encode(torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="need b 4 t h w"):
        make().decode(torch.zeros(1, 5, 2, 2, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"z_dim": 5}, "z_dim=5 must be even.*use 4 or 6"),
        ({"z_dim": 1}, "z_dim=1 must be even.*use 2"),
        ({"z_dim": 16.0}, r"z_dim=16\.0 must be int"),
        ({"dim": 0}, "dim=0 must be at least 1"),
        ({"num_blocks": True}, "num_blocks=True must be int"),
        ({"channel_multipliers": (1, 2, 0, 4)}, r"channel_multipliers\[2\]=0 must be at least 1"),
        ({"channel_multipliers": ()}, r"channel_multipliers=\(\) must not be empty"),
        ({"temporal_downsample": (True,)}, r"=\(True,\): give 3 values, True or False"),
        ({"temporal_downsample": (0, 2, 1)}, r"temporal_downsample\[0\]=0 must be true or false"),
        ({"temporal_downsample": (False,) * 3}, "never halves time.*value True, or use branches=1"),
        ({"latent_std": (0.0,)}, r"latent_std\[0\]=0\.0 must be above 0"),
        ({"latent_std": (float("nan"),)}, r"latent_std\[0\]=nan must be a finite number"),
        ({"latent_mean": (0.0, 1.0)}, "must have 1 or z_dim=16 values"),
        ({"branches": 3}, "branches=3 must be one of 1, 2"),
        ({"temporal": "bidirectional"}, "must be one of group_causal, causal"),
        ({"branch_convs": "2d"}, "must be one of 2d3d, 3d3d"),
        ({"branches": 1, "branch_convs": "3d3d"}, "is for two branches"),
        ({"dropout": 1.0}, "dropout"),
        ({"dim": 1, "channel_multipliers": (1, 3, 4, 4)}, "even number"),
    ],
)
def test_impossible_configs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig(**values)


def test_posterior_in_closed_form():
    posterior = DiagonalGaussian(torch.full((1, 1, 1, 1, 1), 2.0), torch.log(torch.tensor(4.0)))
    assert_close(posterior.kl().item(), 0.5 * (4 + 4 - 1 - np.log(4)))
    assert_close(posterior.at(torch.tensor(1.5)).item(), 5.0)
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
