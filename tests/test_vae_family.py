"""The paper's family of VAEs: what the presets cost, and that the baseline is the Wan VAE."""

import pytest
import torch
from torch.testing import assert_close

from vae import VAEConfig, VideoVAE
from vae.complexity import count_macs, count_parameters
from vae.config import PRESETS
from vae.convert import from_wan


@pytest.mark.parametrize(
    ("preset", "z_dim", "count"),
    [
        ("ivvae", 4, 107_170_842),
        ("ivvae", 8, 107_379_150),
        ("ivvae", 16, 107_798_550),
        ("ivvae_dim96", 16, 241_854_742),
    ],
)
def test_parameter_counts_are_the_released_ones(preset, z_dim, count):
    assert count_parameters(VideoVAE, VAEConfig.preset(preset, z_dim=z_dim)) == count


@pytest.mark.parametrize(
    ("preset", "millions"),
    [  # z 4, 8, 16
        ("baseline", (126.52, 126.64, 126.89)),
        ("baseline_gcconv", (126.52, 126.64, 126.89)),
        ("ktc", (103.86, 103.91, 104.02)),
        ("ktc_gcconv", (103.86, 103.91, 104.02)),
    ],
)
def test_parameter_counts_of_the_ablation(preset, millions):
    counts = [
        count_parameters(VideoVAE, VAEConfig.preset(preset, z_dim=z)) / 1e6 for z in (4, 8, 16)
    ]
    assert_close(torch.tensor(counts), torch.tensor(millions), rtol=0, atol=0.005)


def test_the_3d3d_row_has_the_paper_s_count_without_tmpe():
    """Supplement, Table 4, says 132 M; it does not say whether with TMPE."""
    without = VAEConfig.preset("ivvae_3d3d", z_dim=8, tmpe=False)
    assert round(count_parameters(VideoVAE, without) / 1e6, 1) == 132.2
    assert (
        round(count_parameters(VideoVAE, VAEConfig.preset("ivvae_3d3d", z_dim=8)) / 1e6, 1) == 135.7
    )


@pytest.mark.parametrize(("preset", "tera"), [("baseline", 30.48), ("ivvae", 34.67)])
def test_convolutions_of_17_frames_of_512_are_the_paper_s(preset, tera):
    encoder, decoder = count_macs(VideoVAE, VAEConfig.preset(preset), 17, 512, 512)
    assert round((encoder.convolution + decoder.convolution) / 1e12, 2) == tera


@pytest.mark.parametrize(
    ("z_dim", "dim", "flop"),
    [(4, 64, (6.556, 10.856)), (8, 64, (6.558, 10.856)), (16, 96, (14.715, 24.371))],
)
def test_operations_of_17_frames_of_256_are_the_released_ones(z_dim, dim, flop):
    macs = count_macs(VideoVAE, VAEConfig(z_dim=z_dim, dim=dim), 17, 256, 256)
    assert tuple(round(2 * (m.convolution + m.attention) / 1e12, 3) for m in macs) == flop


def test_counting_refuses_a_size_that_does_not_fit():
    with pytest.raises(ValueError, match="16 frames"):
        count_macs(VideoVAE, VAEConfig(), 16, 256, 256)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"preset 'iv': .* baseline, .*ivvae_dim96"):
        VAEConfig.preset("iv")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_an_image_vae(preset):
    config = VAEConfig.preset(preset)
    image = config.image()
    assert image.is_image
    assert image.branches == 1
    assert image.z_dim == config.z_dim // config.branches
    assert image.image() == image


@pytest.fixture(scope="module")
def wan():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        temperal_downsample=[False, True, True],
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.double().eval()


SMALL_BASELINE = VAEConfig.preset("baseline", z_dim=4, dim=8)


@pytest.mark.parametrize("shape", [(1, 3, 1, 16, 24), (2, 3, 13, 16, 8), (1, 3, 17, 24, 16)])
@torch.no_grad()
def test_the_baseline_is_the_wan_vae(wan, shape):
    model = from_wan(wan.state_dict(), SMALL_BASELINE).eval()
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    theirs, ours = wan.encode(x).latent_dist, model.encode(x)
    assert_close(ours.mean, theirs.mean)
    assert_close(ours.logvar, theirs.logvar)
    # diffusers clamps to [-1, 1] and goes through float32 where it enlarges
    y = model.decode(theirs.mean).clamp(-1, 1)
    assert_close(y, wan.decode(theirs.mean).sample, rtol=1e-5, atol=1e-5)


def test_weights_that_are_no_wan_vae_are_refused():
    with pytest.raises(ValueError, match=r"missing encoder\.down_blocks"):
        from_wan(VideoVAE(SMALL_BASELINE).state_dict(), SMALL_BASELINE)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_lie_in_memory_as_their_weights_do(preset):
    """DDP warns of others, which it has to copy."""
    small = {"z_dim": 4, "dim": 8, "num_blocks": 1, "channel_multipliers": (1, 1, 2, 2)}
    model = VideoVAE(VAEConfig.preset(preset, **small))
    model.reconstruct(torch.rand(1, 3, 9, 16, 16)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad.stride() != p.stride()] == []
