"""Measures of how easy latents are to generate, each by its closed form, and the card."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.accelerator import make_accelerator
from common.files import read_json, write_json
from eval.metrics.diffusability import channel_modes, predictability, spectrum
from latte.tiny_denoiser import DenoiserConfig, denoiser_losses
from scripts import report
from scripts.inspect_cache import InspectCache, run
from tests.builders.cache_command import cache, write_inputs
from vae import VAEConfig
from vae.decoder_measures import decoder_measures


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def cosine(k: int, size: int) -> np.ndarray:
    """A basis vector of the DCT."""
    return np.cos(np.pi * k * (2 * np.arange(size) + 1) / (2 * size))


def test_white_noise_has_a_flat_spectrum():
    found = spectrum(noise(40, 4, 4, 8, 8))
    np.testing.assert_allclose(found.power, 1, atol=0.1)
    t, y, x = np.meshgrid(*(np.arange(size) / size for size in (4, 8, 8)), indexing="ij")
    low = np.sqrt((t**2 + y**2 + x**2) / 3) <= 0.25
    assert found.low_share == pytest.approx(low.mean(), abs=0.01)


@pytest.mark.parametrize(("k", "share"), [((1, 1, 0), 1), ((0, 6, 7), 0), ((3, 0, 0), 0)])
def test_a_cosine_has_all_its_power_in_one_bin(k, share):
    t, y, x = (cosine(i, size) for i, size in zip(k, (4, 8, 8), strict=True))
    field = np.einsum("t,h,w->thw", t, y, x)
    clips = 5 + np.stack([[field, -3 * field], [-field, 3 * field]])  # n c t h w
    found = spectrum(clips)
    radius = np.sqrt(((k[0] / 4) ** 2 + (k[1] / 8) ** 2 + (k[2] / 8) ** 2) / 3)
    bin_of_k = np.abs(found.frequency - radius).argmin()
    assert found.power[bin_of_k] > 0
    np.testing.assert_allclose(np.delete(found.power, bin_of_k), 0, atol=1e-12)
    assert found.low_share == pytest.approx(share)


def test_single_frames_have_frequencies_of_space_alone():
    field = np.einsum("h,w->hw", cosine(7, 8), cosine(7, 8))
    found = spectrum(np.stack([field, -field])[:, None, None])
    assert found.power[found.frequency > 0.875] > 0
    assert found.power[found.frequency < 0.875].sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_equal_modes_are_counted(k):
    """Channels in groups of equal size, each a multiple of one mode."""
    modes = np.linalg.qr(noise(6 * 2 * 4 * 4, 9))[0]
    modes -= modes.mean(axis=0)
    modes = np.linalg.qr(modes)[0][:, :k]
    channels = np.repeat(modes.T, 8 // k, axis=0) * np.linspace(1, 5, 8)[:, None]
    clips = channels.reshape(8, 6, 2, 4, 4).swapaxes(0, 1)  # n c t h w
    found = channel_modes(clips)
    assert found.participation_ratio == pytest.approx(k, rel=1e-2)
    assert found.modes == k  # 8 modes of 12.5 % each: 7 hold 87.5 %


def test_an_unused_channel_is_no_mode():
    clips = noise(20, 5, 2, 4, 4)
    clips[:, 4] = 3.7
    found = channel_modes(clips)
    assert found.participation_ratio == pytest.approx(4, rel=0.05)


def test_what_stands_still_is_determined_and_noise_is_not():
    still = np.repeat(noise(40, 3, 1, 6, 6), 5, axis=2)
    assert predictability(still) == pytest.approx(1, abs=1e-3)
    assert predictability(noise(200, 3, 5, 6, 6)) == pytest.approx(0, abs=0.02)
    assert predictability(still[:, :, :1]) is None


@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_a_first_order_process_has_its_correlation_squared(correlation):
    frames = [noise(300, 2, 6, 6)]
    for step in range(1, 5):
        new = np.sqrt(1 - correlation**2) * noise(300, 2, 6, 6, seed=step)
        frames.append(correlation * frames[-1] + new)
    assert predictability(np.stack(frames, axis=2)) == pytest.approx(correlation**2, abs=0.01)


def test_motion_is_seen_by_the_neighbors():
    """A texture that moves by one position per frame, over borders that repeat."""
    texture = noise(60, 2, 8, 8)
    moving = np.stack([np.roll(texture, step, axis=3) for step in range(4)], axis=2)
    found = predictability(moving)
    assert found is not None
    assert found == pytest.approx(7 / 8, abs=0.02)  # what enters from the border is new


@pytest.mark.parametrize("measure", [spectrum, channel_modes, predictability])
def test_what_cannot_be_measured_is_refused(measure):
    with pytest.raises(ValueError, match="nothing to measure"):
        measure(np.ones((2, 3, 2, 4, 4)))
    with pytest.raises(ValueError, match="not finite"):
        measure(np.full((2, 3, 2, 4, 4), np.nan))
    with pytest.raises(ValueError, match="two clips" if measure is predictability else "n c t h w"):
        measure(noise(1, 3, 2, 4, 4) if measure is predictability else noise(3, 2, 4, 4))


class Pooling:
    """A decoder that repeats every latent position of three channels."""

    config = VAEConfig(z_dim=3, branches=1)

    def decode(self, z, *, size):
        nearest = F.interpolate(z, scale_factor=(4, 8, 8), mode="nearest")
        return nearest[:, :, 3:][:, :, : size[0]]


POOLING: Any = Pooling()


def test_noise_of_each_time_reaches_the_pixels():
    """Error of a linear decoder: the noise itself, std t / (1 - t)."""
    z = 0.1 * torch.rand(4, 3, 3, 16, 16)
    std = torch.tensor([0.1, 0.1, 0.1])
    found = decoder_measures(
        POOLING, [(z[:1], None), (z[1:], None)], std, frames=9, times=(0.2, 0.5)
    )
    for time, sigma in ((0.2, 0.025), (0.5, 0.1)):
        expected = -20 * math.log10(sigma / 2)
        assert found[f"noise_psnr_{time}"] == pytest.approx(expected, abs=0.3)
    whole = decoder_measures(POOLING, [(z, None)], std, frames=9, times=(0.2, 0.5))
    assert whole == pytest.approx(found)  # however the clips are batched
    assert set(found) == {"noise_psnr_0.2", "noise_psnr_0.5"}


def test_a_pooling_decoder_is_scale_equivariant():
    coarse = torch.rand(2, 3, 1, 2, 2).repeat_interleave(16, 3).repeat_interleave(16, 4)
    x = coarse.repeat(1, 1, 9, 1, 1)
    z = F.avg_pool3d(x, (1, 8, 8))[:, :, ::4]
    found = decoder_measures(POOLING, [(z, x)], torch.ones(3), frames=9)
    assert (found["reconstruction_psnr"], found["downsampled_psnr"]) == (100, 100)
    found = decoder_measures(POOLING, [(z, x.flip(4))], torch.ones(3), frames=9)
    assert found["downsampled_psnr"] < 30
    found = decoder_measures(POOLING, [(z[..., :1, :1], x[..., :8, :8])], torch.ones(3), frames=9)
    assert "downsampled_psnr" not in found  # one position cannot be halved


def test_the_denoiser_learns_what_can_be_known():
    """One latent again and again is learned, noise is not; equal seeds give equal losses."""
    config, accelerator = DenoiserConfig(steps=60, batch_size=4, hidden_size=32), make_accelerator()
    z = torch.randn(1, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    same = denoiser_losses(z.repeat(8, 1, 1, 1, 1), config, accelerator)
    assert set(same) == {"mse", *(f"mse_quarter_{i}" for i in range(1, 5))}
    assert same["mse"] < 1
    other = torch.randn(8, 2, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    noise = denoiser_losses(other, config, accelerator)
    assert noise["mse"] > same["mse"]
    assert denoiser_losses(other, config, accelerator) == noise
    with pytest.raises(ValueError, match="3 latents"):
        denoiser_losses(other[:3], config, accelerator)


def test_the_card_of_a_cache_and_the_page_that_shows_it(tmp_path, capsys):
    inputs = write_inputs(tmp_path)
    cache(inputs, tmp_path / "c", **{"data.height": 32})
    options = {"latents": str(tmp_path / "c"), "out": str(tmp_path / "look"), "num_clips": 1}
    options["num_card_clips"] = 6
    options |= {"denoiser": DenoiserConfig(steps=2, batch_size=2, hidden_size=8)}

    def card(name, **more):
        run(InspectCache(card=tmp_path / name, **options, **more))
        return read_json(tmp_path / name)

    alone = card("alone.json")
    assert {"modes_90", "predictability", "denoiser_mse_quarter_4"} <= set(alone["measures"])
    assert not any("psnr" in name for name in alone["measures"])
    assert set(alone["spectra"]) == {"latents"}
    assert alone["protocol"]["clips"] == 6
    pixels = card("pixels.json", data=str(inputs / "shards"))
    assert set(pixels["spectra"]) == {"latents", "pixels"}
    whole = card("whole.json", data=str(inputs / "shards"), vae=str(inputs / "vae"))
    added = set(whole["measures"]) - set(pixels["measures"])
    assert {"reconstruction_psnr", "downsampled_psnr", "noise_psnr_0.05"} <= added
    assert {n: whole["measures"][n] for n in pixels["measures"]} == pixels["measures"]
    assert whole["measures"]["noise_psnr_0.05"] > whole["measures"]["noise_psnr_0.7"]
    assert "the card of 6 latents" in capsys.readouterr().out

    few = {**whole, "protocol": {**whole["protocol"], "clips": 5}}
    write_json(tmp_path / "few.json", few)
    page = tmp_path / "page.html"
    results = [f"{name}={tmp_path / name}.json" for name in ("whole", "alone", "few")]
    report.run(report.MakeReport(results=results, out=str(page)))
    text = page.read_text()
    assert "few does not compare: clips" in text
    assert "alone does not compare" not in text
    for title in ("Power by radial frequency", "Decoder under noise", "Tiny denoiser"):
        assert title in text
