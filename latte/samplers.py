"""From noise to latents, with classifier-free guidance.

DDPM, DDIM and DPM-Solver++ run a diffusion backwards over few of its steps; Euler and Heun follow a
flow. A clip's noise is a function of (seed, the clip's index) alone, so a set of clips is the same
for every batch size and number of processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Float, Int
from torch import Tensor

from common.config import Config
from common.seeding import generator
from latte.config import LatteConfig
from latte.continuation import replacement_guidance
from latte.diffusion import GaussianDiffusion, GuidanceInterval, Latents, ModelFn, model_at
from latte.diffusion_process import DiffusionProcess
from latte.dpm_solver import dpm_solver
from latte.embeddings import check_labels
from latte.flow import RectifiedFlow, integrate
from latte.model import Latte

Spacing = Literal["fractional", "stride"]
FLOW_METHODS = ("euler", "heun")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(Config):
    """How latents are sampled."""

    method: Literal["ddpm", "ddim", "dpm_solver", "euler", "heun"] = "ddpm"
    """For a diffusion: ddpm draws new noise at each step; ddim with eta 0 only at the start;
    dpm_solver is DPM-Solver++ of order 2. For a flow: euler or heun."""
    steps: Annotated[int, Ge(1), Le(100_000)] = 250
    """Sampling steps; for a diffusion from 2 to the schedule's length."""
    spacing: Spacing = "fractional"
    """Which timesteps ddpm and ddim take: fractional spreads them evenly from first to last; stride
    takes every n-th (the rule named ddim50 in public code). dpm_solver's are even in log SNR."""
    eta: Annotated[float, Ge(0), Le(1)] = 0.0
    """DDIM only: share of new noise per step; 1 adds as much as DDPM's posterior."""
    guidance: Annotated[float, Ge(0)] = 1.0
    """Classifier-free guidance scale; 1 is none. Needs a class-conditional model."""
    guidance_interval: tuple[Annotated[float, Ge(0)], float] = (0.0, 1.0)
    """Where to guide: from and to which share of the way from data (0) to noise (1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spacing != "fractional" and self.method not in ("ddpm", "ddim"):
            raise ValueError(
                f"SamplerConfig: spacing={self.spacing} requires method=ddpm or ddim, not "
                f"{self.method}."
            )
        if self.steps < 2 and self.method not in FLOW_METHODS:
            raise ValueError(f"SamplerConfig: steps={self.steps} must be at least 2.")
        if self.eta and self.method != "ddim":
            raise ValueError(
                f"SamplerConfig: eta={self.eta} requires method=ddim, not {self.method}."
            )
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"SamplerConfig: guidance_interval={self.guidance_interval} must be (low, high) "
                "with 0 <= low < high <= 1."
            )
        if self.guidance == 1 and (low, high) != (0, 1):
            raise ValueError(
                f"SamplerConfig: guidance_interval={self.guidance_interval} has no effect at "
                "guidance=1."
            )


def check_sampler(config: SamplerConfig, process: DiffusionProcess, model: LatteConfig) -> None:
    """Refuse a sampler that does not fit, before anything slow.

    Raises:
        ValueError: a method of the other process, more steps than the schedule has, guidance of an
            unconditional model.
    """
    is_flow = isinstance(process, RectifiedFlow)
    if is_flow != (config.method in FLOW_METHODS):
        kind = "flow" if is_flow else "diffusion"
        use = "euler or heun" if is_flow else "ddpm, ddim or dpm_solver"
        raise ValueError(f"sampler: method={config.method}, but this model is a {kind}. Use {use}.")
    if isinstance(process, GaussianDiffusion):
        spaced_timesteps(process.config.steps, config.steps, config.spacing)
    _check_guidance(config.guidance, model)


def spaced_timesteps(total: int, steps: int, spacing: Spacing = "fractional") -> list[int]:
    """Choose `steps` of the timesteps 0 .. total - 1, in increasing order.

    "fractional" rounds even fractions of the way from the first to the last timestep; "stride"
    takes the multiples of the smallest integer that gives exactly `steps` of them.

    Raises:
        ValueError: fewer than 2 or more than `total` steps, or no such integer.

    Source: the respacing of Nichol and Dhariwal 2021; Song et al. 2021 (DDIM), appendix D.2.
    """
    if not 2 <= steps <= total:
        raise ValueError(
            f"sampler: steps={steps} must be from 2 to {total}, the schedule's length."
        )
    if spacing == "stride":
        stride = next((n for n in range(1, total) if len(range(0, total, n)) == steps), None)
        if stride is None:
            raise ValueError(
                f"sampler: spacing=stride cannot give exactly {steps} of {total} steps. Use "
                f"spacing=fractional, or steps={len(range(0, total, round(total / steps)))}."
            )
        return list(range(0, total, stride))
    position, chosen = 0.0, []
    for _ in range(steps):
        chosen.append(round(position))
        position += (total - 1) / (steps - 1)
    return chosen


def guided(model: Latte, y: Int[Tensor, " b"] | None, scale: float = 1.0) -> ModelFn:
    """Bind labels and classifier-free guidance: one call for both predictions.

    prediction = null + scale * (class - null), be it of noise, v or velocity: these are affine in
    each other. The variance is the class's, unguided.

    Args:
        model: A class-conditional model, or with scale 1 any.
        y: Labels, one per clip.
        scale: Of guidance; 1 is none.

    Raises:
        ValueError: guidance without classes, labels missing, unexpected or out of range.

    Source: Ho and Salimans 2022, equation 6, with scale = 1 + w.
    """
    config = model.config
    _check_guidance(scale, config)
    if config.num_classes is not None and y is None:
        raise ValueError(
            "sampler: this model is class-conditional. Give one label per clip, or "
            f"{config.null_label} (the null label) for clips of no class."
        )
    if y is not None:
        check_labels(y, config)
    if y is None or scale == 1:
        return lambda x, t: model(x, t, y)
    labels = torch.cat([y, torch.full_like(y, config.null_label)])

    def predict(x: Tensor, t: Tensor) -> Tensor:
        output = model(torch.cat([x, x]), torch.cat([t, t]), labels)
        estimate, variance = output.split([x.shape[1], output.shape[1] - x.shape[1]], dim=1)
        with_class, without = estimate.chunk(2)
        return torch.cat([without + scale * (with_class - without), variance[: len(x)]], dim=1)

    return predict


def _check_guidance(scale: float, model: LatteConfig) -> None:
    if model.num_classes is None and scale != 1:
        raise ValueError(
            f"sampler: guidance={scale} needs a class-conditional model, but this one is "
            "unconditional. Use guidance=1."
        )


def denoise(
    model_fn: ModelFn | GuidanceInterval,
    diffusion: GaussianDiffusion,
    start: Latents,
    draw: Callable[[int], Tensor],
    *,
    method: Literal["ddpm", "ddim"] = "ddpm",
    eta: float = 0.0,
) -> Latents:
    """Run a sampler over all timesteps of `diffusion`, last to first, with the given noise.

    Args:
        model_fn: The model with labels and guidance bound.
        diffusion: Of the sampling steps alone.
        start: Standard normal noise.
        draw: Called with the position i = len(diffusion) - 1, ..., 1 of each step that adds noise;
            returns standard normal noise like `start`. Not called at i = 0, nor by DDIM with eta 0.
        method: Ancestral sampling (DDPM, algorithm 2) or DDIM (Song et al. 2021, equation 12).
        eta: DDIM's share of new noise.

    Returns:
        Latents, float32. x_0 is not clipped: latents have no fixed range.
    """
    x = start.float()
    for i in range(len(diffusion) - 1, -1, -1):
        t = torch.full((len(x),), i, device=x.device)
        output = model_at(model_fn, diffusion.timestep_values[i])(x, diffusion.training_timestep(t))
        prediction = diffusion.predict(output, x, t)
        if method == "ddpm":
            x, std = prediction.mean, torch.exp(prediction.logvar / 2)
        else:
            # Song et al. 2021, equations 12 and 16
            std = eta * diffusion.at("posterior_std", t)
            share = 1 - diffusion.at("previous_alpha_bar", t) - std.square()
            x = diffusion.at("previous_signal", t) * prediction.x0
            x = x + share.clamp(min=0).sqrt() * prediction.noise
        if i > 0 and (method == "ddpm" or eta > 0):
            x = x + std * draw(i)
    return x


@torch.no_grad()
def sample(
    model: Latte,
    process: DiffusionProcess,
    config: SamplerConfig,
    *,
    indices: Sequence[int],
    labels: Sequence[int] | None = None,
    seed: int,
    known: Float[Tensor, "b c k h w"] | None = None,
) -> Latents:
    """Sample one batch of latents on the model's device.

    Args:
        model: The trained model (for good samples, its EMA).
        process: The one it was trained on, with its whole schedule.
        config: Sampler, steps and guidance.
        indices: The clips' numbers in the whole set; each clip's noise comes from (seed, index).
        labels: One per clip for a class-conditional model, None for an unconditional one.
        seed: Of the whole set.
        known: The first k latent frames of each clip, normalized, to be continued
            (see `latte.continuation`); they are returned as given.

    Raises:
        ValueError: a sampler, labels or known frames that do not fit the model or the process.
    """
    if labels is not None and len(labels) != len(indices):
        raise ValueError(f"sampler: {len(labels)} labels for {len(indices)} clips; give one each.")
    check_sampler(config, process, model.config)
    device = model.pos_embed.device
    y = None if labels is None else torch.tensor(labels, device=device)
    shape = model.config.latent_shape
    generators = [generator(seed, "sample", index) for index in indices]

    def draw(_: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)

    start = draw(config.steps)
    known = None if known is None else known.to(device)

    def bound(scale: float) -> ModelFn:
        model_fn = guided(model, y, scale)
        return model_fn if known is None else replacement_guidance(model_fn, process, known, start)

    model_fn: ModelFn | GuidanceInterval = bound(config.guidance)
    if config.guidance_interval != (0, 1):
        low, high = (share * process.max_timestep for share in config.guidance_interval)
        model_fn = GuidanceInterval(model_fn, bound(1.0), low, high)
    if config.method in ("euler", "heun"):
        latents = integrate(model_fn, start, config.steps, method=config.method)
    else:
        assert isinstance(process, GaussianDiffusion)  # check_sampler saw to it
        if config.method == "dpm_solver":
            latents = dpm_solver(model_fn, process, start, config.steps)
        else:
            timesteps = spaced_timesteps(process.config.steps, config.steps, config.spacing)
            spaced = GaussianDiffusion(process.config, timesteps)
            latents = denoise(model_fn, spaced, start, draw, method=config.method, eta=config.eta)
    return latents if known is None else torch.cat([known, latents[:, :, known.shape[2] :]], dim=2)
