"""IV-VAE: the released behaviour, the family's counts, chunks, causality, inflation, saving."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.vectors import load_case
from vae import DiagonalGaussian, ImageVAE, VAEConfig, VideoVAE, inflate, weights_hash
from vae.convert import from_released, to_released

TINY = VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 2, 2, 2), num_blocks=1)


def scramble(model: VideoVAE) -> VideoVAE:
    """Move every weight a little, so that residual branches no longer start at zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def make(config: VAEConfig = TINY) -> VideoVAE:
    return scramble(VideoVAE(config)).double().eval()


def video(t: int, h: int = 16, w: int = 24, b: int = 1, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(b, 3, t, h, w, generator=generator, dtype=torch.float64) * 2 - 1


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


def test_a_checkpoint_that_does_not_fit_names_every_kind_of_difference(released):
    weights = released[0].weights()
    weights["extra"] = weights.pop("conv1.conv_2d.bias")
    weights["conv2.conv_2d.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"missing conv1.conv_2d.bias") as error:
        from_released(weights, VAEConfig(z_dim=4, dim=8))
    assert "unexpected extra" in str(error.value)
    assert "conv2.conv_2d.bias" in str(error.value)
    assert "(7,)" in str(error.value)


@pytest.mark.parametrize(
    ("z_dim", "dim", "count"),
    [(4, 64, 107_170_842), (8, 64, 107_379_150), (16, 64, 107_798_550), (16, 96, 241_854_742)],
)
def test_parameter_counts_are_the_released_ones(z_dim, dim, count):
    with torch.device("meta"):
        model = VideoVAE(VAEConfig(z_dim=z_dim, dim=dim))
    assert sum(p.numel() for p in model.parameters()) == count


@st.composite
def splits(draw):
    groups = draw(st.integers(1, 4))
    cuts = draw(st.sets(st.integers(1, groups - 1))) if groups > 1 else set()
    edges = [0, *sorted(cuts), groups]
    sizes = [b - a for a, b in pairwise(edges)]
    alone = draw(st.booleans())  # the image frame as a chunk of its own
    return ([0] if alone else []) + sizes


@settings(max_examples=8, deadline=None)
@given(
    chunks=splits(),
    size=st.sampled_from([(8, 8), (8, 16), (16, 8)]),
    pattern=st.sampled_from([(False, True, True), (True, False, True), (True, True, True)]),
)
def test_any_split_into_chunks_equals_the_whole(chunks, size, pattern):
    config = VAEConfig(
        z_dim=4, dim=4, channel_multipliers=(1, 1, 1, 1), num_blocks=1, temporal_downsample=pattern
    )
    model, ratio = make(config), config.temporal_ratio
    x = video(1 + ratio * sum(chunks), *size)
    frames = [n * ratio + (i == 0) for i, n in enumerate(chunks)]
    latent_frames = [n + (i == 0) for i, n in enumerate(chunks)]
    with torch.no_grad():
        whole = model.encode(x)
        parts = list(model.stream_encode(x.split(frames, dim=2)))
        assert_close(torch.cat([p.moments for p in parts], dim=2), whole.moments)
        decoded = list(model.stream_decode(whole.mean.split(latent_frames, dim=2)))
        assert_close(torch.cat(decoded, dim=2), model.decode(whole.mean))


def test_no_output_depends_on_a_later_group_and_all_frames_of_a_group_on_each_other():
    """The point of group causal convolution (paper, Sec. 3.3), read off gradients."""
    model = make()
    x = video(13, 8, 8).requires_grad_()
    y = model.decode(model.encode(x).mean)
    group = [0] + [1 + t // 4 for t in range(12)]
    for t in range(13):
        (gradient,) = torch.autograd.grad(y[:, :, t].sum(), x, retain_graph=True)
        reached = gradient.abs().amax(dim=(0, 1, 3, 4)) > 0
        for s in range(13):
            if group[s] > group[t]:
                assert not reached[s], f"frame {t} depends on frame {s} of a later group"
            if group[s] == group[t]:
                assert reached[s], f"frame {t} does not depend on frame {s} of its group"


def test_an_inflated_vae_repeats_what_the_image_vae_does():
    image = scramble(ImageVAE(TINY.image())).double().eval()
    model = inflate(image, TINY).double().eval()
    x = video(9, b=2)
    with torch.no_grad():
        frames = image.decode(image.encode(x).mean)
        y = model.decode(model.encode(x).mean)
    shown = [0, 1, 4, 4, 4, 5, 8, 8, 8]  # keyframes themselves; the others as their group's last
    assert_close(y, frames[:, :, shown])


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


def test_every_parameter_learns():
    model = scramble(VideoVAE(TINY))
    x = video(9).float()
    y, posterior = model(x, torch.randn(1, 4, 3, 2, 3))
    (y.abs().mean() + posterior.kl().mean()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_residual_branches_start_at_zero():
    torch.manual_seed(0)
    model = VideoVAE(TINY)
    x = torch.randn(2, 2 * TINY.channels[-1], 4, 4)
    for layer in model.decoder.middle:
        assert_close(layer(x, None), x, rtol=0, atol=0)


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


def test_normalising_is_undone_by_denormalising():
    config = VAEConfig(z_dim=4, dim=4, latent_mean=(1.0, 2.0, 3.0, 4.0), latent_std=(2.0,))
    with torch.device("meta"):
        model = VideoVAE(config)
    z = torch.arange(4.0).view(1, 4, 1, 1, 1)
    assert_close(model.normalize(z).flatten(), torch.full((4,), -0.5))
    assert_close(model.denormalize(model.normalize(z)), z)


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
        ({"z_dim": 5}, "z_dim=5"),
        ({"temporal_downsample": (True,)}, "3 steps between levels"),
        ({"dim": 0}, "dim=0"),
        ({"latent_std": (0.0,)}, "must be positive"),
        ({"latent_mean": (0.0, 1.0)}, "1 or z_dim=16 values"),
        ({"branches": 1}, "no temporal_downsample"),
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
