"""The diffusability card: measures of how easy a VAE's latents are to generate, as one result."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from numpy import ndarray

from common.local_correlation import local_correlation
from eval.metrics.diffusability import channel_modes, predictability, spectrum


def diffusability_card(
    latents: Float32[ndarray, "n c t h w"],
    videos: UInt8[ndarray, "n 3 t2 h2 w2"] | None,
    *,
    denoiser: Mapping[str, float],
    decoder: Mapping[str, float],
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    """The card, for JSON.

    Args:
        latents: means of the posteriors, raw or normalized.
        videos: the clips behind them, for their spectrum beside that of the latents.
        denoiser: losses of `latte.probe`.
        decoder: `vae.decoder_measures`; empty without the VAE.
        protocol: what was measured, and with which budget.

    Returns:
        `measures`, name to number, and `spectra`: of latents and pixels, frequency and power.

    Raises:
        ValueError: latents that cannot be measured, such as constant or a single clip.
    """
    of_latents, modes = spectrum(latents), channel_modes(latents)
    spectra = {"latents": of_latents}
    measures: dict[str, float] = {
        "low_frequency_share": of_latents.low_share,
        "modes_90": modes.modes,
        "participation_ratio": modes.participation_ratio,
        "local_correlation": local_correlation(torch.from_numpy(latents)).item(),
    }
    if videos is not None:
        spectra["pixels"] = spectrum(videos)
        measures["pixel_low_frequency_share"] = spectra["pixels"].low_share
    if (predicted := predictability(latents)) is not None:
        measures["predictability"] = predicted
    measures |= {f"denoiser_{name}": value for name, value in denoiser.items()}
    return {
        "kind": "diffusability",
        "protocol": {**protocol, "clips": len(latents), "latent_shape": latents.shape[1:]},
        "measures": {**measures, **decoder},
        "spectra": {
            name: {"frequency": found.frequency.tolist(), "power": found.power.tolist()}
            for name, found in spectra.items()
        },
    }
