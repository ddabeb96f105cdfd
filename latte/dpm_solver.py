"""DPM-Solver++ through diffusers' scheduler, an optional dependency."""

import importlib.util
import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from latte.diffusion import GaussianDiffusion, Interval, ModelFn, model_at

_PREDICTION = {"noise": "epsilon", "v": "v_prediction"}


def require_diffusers() -> None:
    """Refuse (`ValueError`) to go on without diffusers."""
    if importlib.util.find_spec("diffusers") is None:
        raise ValueError(
            "sampler: method=dpm_solver needs diffusers. pip install 'ivvae[compare]', or use ddim."
        )


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
    model_fn: ModelFn | Interval,
    diffusion: GaussianDiffusion,
    start: Float[Tensor, "b c t h w"],
    steps: int,
    *,
    progress: bool = False,
) -> Float[Tensor, "b c t h w"]:
    """Solve the diffusion's ODE from noise to data: multistep, second order, deterministic.

    A learned variance has no part in it.

    Args:
        model_fn: The model with labels and guidance bound.
        diffusion: With its whole schedule.
        start: Standard normal noise.
        steps: Model calls.
        progress: Show a bar with rate and remaining time.

    Raises:
        ValueError: diffusers is missing.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2.
    """
    require_diffusers()
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(diffusion),
        trained_betas=diffusion.beta.float().numpy(),
        prediction_type=_PREDICTION[diffusion.config.prediction],  # type: ignore[arg-type]
        algorithm_type="dpmsolver++",
    )
    with warnings.catch_warnings():  # diffusers makes its tables in a way that NumPy 2 deprecates
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(timesteps=even_timesteps(diffusion, steps)[::-1])
    scheduler.set_begin_index(0)
    x = start.float()
    for timestep in tqdm(scheduler.timesteps, desc="sampling", disable=not progress):
        t = torch.full((len(x),), int(timestep), device=x.device)
        estimate = model_at(model_fn, int(timestep))(x, t).float()[:, : x.shape[1]]
        x = scheduler.step(estimate, timestep, x, return_dict=False)[0]
    return x
