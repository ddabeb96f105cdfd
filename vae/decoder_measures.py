"""What a decoder makes of latents that a generator would not hit exactly."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from common.psnr import psnr_from_mse
from common.seeding import noise
from vae.base import VideoAutoencoder
from vae.edits import pooled
from vae.regularizers import ScaleEquivariance

TIMES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Times of the flow, 0 data, 1 noise, at which decoding is measured."""
FACTOR = 2
"""Of the downsampling in space, and in time where it fits."""


@torch.inference_mode()
def decoder_measures(
    vae: VideoAutoencoder,
    batches: Iterable[tuple[Float[Tensor, "b z t h w"], Float[Tensor, "b 3 t2 h2 w2"] | None]],
    std: Float[Tensor, " z"],
    *,
    frames: int,
    times: Sequence[float] = TIMES,
    seed: int = 0,
) -> dict[str, float]:
    """PSNRs in dB, each of the mean squared error over all clips; decoded pixels are clamped.

    `noise_psnr_T`: D(z + T / (1 - T) std e) against D(z), e standard normal. z_T = (1 - T) z + T e
    is the flow's state of the normalized latent at time T; divided by 1 - T it is z with noise, and
    nothing else. A decoder that keeps this error small forgives what a generator leaves of it.

    With videos also `reconstruction_psnr`: D(z) against x, and where sizes allow
    `downsampled_psnr`: D(down(z)) against down(x), down the average over 2 x 2 positions, and over
    2 frames after the first.

    Args:
        batches: raw latents, as the encoder gives them, and their clips in [-1, 1] or None.
        std: of the raw latents per channel, by which they are normalized.
        frames: of the clips.
        times: between 0 and 1.
        seed: of e, which is the same at all times, and drawn for each clip by its number.

    Source: Liu et al. 2023 (rectified flow); Skorokhodov et al. 2025 (arXiv 2502.14831, scale
        equivariance); Yang et al. 2025 (arXiv 2507.15856) train decoders on such noise.
    """
    errors: dict[str, float] = defaultdict(float)
    clips = 0

    def add(name: str, decoded: Tensor, wanted: Tensor) -> None:
        error = decoded.clamp(-1, 1).double() - wanted.double()
        errors[name] += error.square().mean(dim=(1, 2, 3, 4)).sum().item()

    for z, x in batches:
        size = vae.config.decoded_size(z, frames)
        clean = vae.decode(z, size=size).clamp(-1, 1)
        draw = noise(tuple(z.shape[1:]), seed, "decoder noise", 0, range(clips, clips + len(z)))
        e = std.to(z).view(-1, 1, 1, 1) * draw.to(z)
        for time in times:
            add(f"noise_psnr_{time:g}", vae.decode(z + time / (1 - time) * e, size=size), clean)
        clips += len(z)
        if x is None:
            continue
        add("reconstruction_psnr", clean, x)
        for time, space in ScaleEquivariance(factors=(FACTOR,)).choices(vae.config, size):
            small = pooled(x, time, space)
            add("downsampled_psnr", vae.decode(pooled(z, time, space), size=small.shape[2:]), small)
    mean = torch.tensor(list(errors.values()), dtype=torch.float64) / max(clips, 1)
    return dict(zip(errors, psnr_from_mse(mean, peak=2).tolist(), strict=True))
