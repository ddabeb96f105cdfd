"""DPM-Solver++: a diffusion's ODE from noise to data in few steps."""

import math

import torch

from latte.diffusion import GaussianDiffusion, GuidanceInterval, Latents, ModelFn, model_at


def even_timesteps(diffusion: GaussianDiffusion, steps: int) -> list[int]:
    """Timesteps, increasing, from the first to the last and as evenly spaced in log SNR as whole
    numbers allow; the solver's error is a matter of these distances (DPM-Solver, section 3.4)."""
    log_snr = (diffusion.alpha_bar / (1 - diffusion.alpha_bar)).log().flip(0)  # increasing
    wanted = torch.linspace(log_snr[-1].item(), log_snr[0].item(), steps, dtype=log_snr.dtype)
    last, chosen = len(diffusion) - 1, []
    for i, value in enumerate(wanted):
        nearest = last - int((log_snr - value).abs().argmin())
        least = chosen[-1] + 1 if chosen else 0
        chosen.append(min(max(nearest, least), last - (steps - 1 - i)))
    return chosen


def dpm_solver(
    model_fn: ModelFn | GuidanceInterval, diffusion: GaussianDiffusion, start: Latents, steps: int
) -> Latents:
    """Solve the diffusion's ODE from noise to data: multistep, second order, deterministic.

    The first step and the last, which ends in data without noise, are of first order. A learned
    variance has no part in it. Coefficients are the host's numbers, so that no step waits for the
    device.

    Args:
        model_fn: The model with labels and guidance bound.
        diffusion: With its whole schedule.
        start: Standard normal noise.
        steps: Model calls.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2.
    """
    timesteps, alpha_bar = _path(diffusion, steps)
    signal = [math.sqrt(a) for a in alpha_bar]
    sigma = [math.sqrt(1 - a) for a in alpha_bar]
    half_log_snr = [math.log(a / s) if s else math.inf for a, s in zip(signal, sigma, strict=True)]
    x, before = start.float(), None
    for i, timestep in enumerate(timesteps):
        t = torch.full((len(x),), timestep, device=x.device)
        x0 = diffusion.predict(model_at(model_fn, timestep)(x, t), x, t).x0
        length, estimate = half_log_snr[i + 1] - half_log_snr[i], x0
        if before is not None and i + 1 < steps:
            ratio = length / (half_log_snr[i] - half_log_snr[i - 1])
            estimate = x0 + ratio / 2 * (x0 - before)
        x = sigma[i + 1] / sigma[i] * x - signal[i + 1] * math.expm1(-length) * estimate
        before = x0
    return x


def _path(diffusion: GaussianDiffusion, steps: int) -> tuple[list[int], list[float]]:
    """Timesteps, decreasing, and alpha_bar at each and at the end."""
    timesteps = even_timesteps(diffusion, steps)[::-1]
    return timesteps, [*diffusion.alpha_bar[timesteps].tolist(), 1.0]
