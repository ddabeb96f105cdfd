"""Gaussian diffusion with predicted noise or v and, optionally, a learned variance.

Tables are float64, maths on tensors float32 whatever the model's precision. Timesteps count from 0
(least noise), as in the code of the papers: t = 0 here is their equations' t = 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float, Int
from torch import Tensor
from torch._guards import detect_fake_mode

from common.config import Config

ModelFn = Callable[[Tensor, Tensor], Tensor]
"""(x_t `b c t h w`, timesteps `b` of the training schedule) -> output `b k t h w`, k = c or 2c."""
Latents = Float[Tensor, "b c t h w"]
"""Latents of b clips: c channels, t frames, h x w positions."""


@dataclass(frozen=True)
class GuidanceInterval:
    """Guidance in a limited interval: of two model functions the timestep decides.

    Samplers decide, which know it on the host, so that no step reads a value from the device.

    Source: Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval".
    """

    inside: ModelFn
    outside: ModelFn
    low: float
    """First timestep of the interval, in the units that the model gets."""
    high: float
    """The last one."""


def model_at(model: ModelFn | GuidanceInterval, timestep: float) -> ModelFn:
    """What to call where all rows have this timestep."""
    if not isinstance(model, GuidanceInterval):
        return model
    return model.inside if model.low <= timestep <= model.high else model.outside


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(Config):
    """Noise schedule of the training process, what the model predicts and how it is weighted."""

    steps: Annotated[int, Ge(2), Le(100_000)] = 1000
    """Diffusion steps T."""
    beta_start: Annotated[float, Gt(0)] = 1e-4
    """Variance added by the first step; the betas in between lie on a line."""
    beta_end: Annotated[float, Gt(0), Lt(1)] = 0.02
    """Variance added by the last step."""
    prediction: Literal["noise", "v"] = "noise"
    """What the model predicts: the noise (as the released models) or
    v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0."""
    min_snr_gamma: Annotated[float | None, Gt(0)] = None
    """Bound on the weight of a step, in units of its signal-to-noise ratio: its loss, as one of
    x_0, counts min(SNR, gamma) times (the paper uses 5). null: the plain mean squared error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_start > self.beta_end:
            raise ValueError(
                f"DiffusionConfig: beta_start={self.beta_start} and beta_end={self.beta_end} must "
                "satisfy 0 < beta_start <= beta_end < 1."
            )


class Prediction(NamedTuple):
    """What a model's output says about x_t: p(x_{t-1} | x_t) and the estimates behind it."""

    mean: Latents
    logvar: Latents
    x0: Latents
    noise: Latents


class GaussianDiffusion:
    """The forward process, its posterior, and the loss of a model that predicts the noise or v.

    `t` in all methods is a position in `timesteps`: the whole schedule, or for sampling a part of
    it, for which the betas are recomputed so that the kept steps have the same noise levels.

    Source: Ho et al. 2020 (DDPM); Nichol and Dhariwal 2021 (learned variance, fewer steps);
    Salimans and Ho 2022 (v).
    """

    def __init__(
        self, config: DiffusionConfig | None = None, timesteps: Sequence[int] | None = None
    ):
        """Raises: ValueError if timesteps do not increase, or lie outside the schedule."""
        self.config = config or DiffusionConfig()
        steps = self.config.steps
        kept = list(range(steps) if timesteps is None else timesteps)
        if not kept or any(low >= high for low, high in pairwise([-1, *kept, steps])):
            raise ValueError(f"diffusion: timesteps {kept} must increase within 0 .. {steps - 1}.")
        self.timestep_values = kept  # for the host, which does not wait for a device then
        self.timesteps = torch.tensor(kept)
        schedule = torch.linspace(
            self.config.beta_start, self.config.beta_end, steps, dtype=torch.float64
        )
        alpha_bar = self.alpha_bar = torch.cumprod(1 - schedule, dim=0)[self.timesteps]
        previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        self.beta = 1 - alpha_bar / previous
        # DDPM, equations 6 and 7: q(x_{t-1} | x_t, x_0) = N(from_x0 x_0 + from_xt x_t, variance)
        self.posterior_variance = self.beta * (1 - previous) / (1 - alpha_bar)
        # The posterior has no variance at t = 0; its logarithm borrows the next step's.
        second = self.posterior_variance[1:2] if len(self) > 1 else self.beta
        self._tables = {
            "signal": alpha_bar.sqrt(),
            "sigma": (1 - alpha_bar).sqrt(),
            "inverse_signal": alpha_bar.rsqrt(),
            "inverse_sigma": (1 - alpha_bar).rsqrt(),
            "sigma_per_signal": (1 / alpha_bar - 1).sqrt(),
            "from_x0": self.beta * previous.sqrt() / (1 - alpha_bar),
            "from_xt": (1 - previous) * (1 - self.beta).sqrt() / (1 - alpha_bar),
            "log_lower": torch.cat([second, self.posterior_variance[1:]]).log(),
            "log_upper": self.beta.log(),
            "previous_alpha_bar": previous,
            "previous_signal": previous.sqrt(),
            "posterior_std": self.posterior_variance.sqrt(),
            "loss_weight": self.loss_weight,
        }
        self._on_device: dict[tuple[Any, ...], Tensor] = {}

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def max_timestep(self) -> float:
        """The timestep of most noise, in the units that a model gets."""
        return self.config.steps - 1

    def at(self, name: str, t: Int[Tensor, " b"]) -> Float[Tensor, "b 1 1 1 1"]:
        """Entries `t` of a table as float32 on the device of `t`, to multiply `b c t h w`.

        A table is copied to a device once, so that later steps need not wait for the host.
        """
        return self._on_device_of(t, name, self._tables[name].float)[t].view(-1, 1, 1, 1, 1)

    def training_timestep(self, t: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The timesteps of the training schedule at positions `t`, what a model is told."""
        return self._on_device_of(t, "timesteps", lambda: self.timesteps)[t]

    def _on_device_of(self, t: Tensor, name: str, table: Callable[[], Tensor]) -> Tensor:
        """The table on the device of `t`, kept; memory estimates, without data, get their own."""
        key = name, t.device, detect_fake_mode(t)
        if key not in self._on_device:
            self._on_device[key] = table().to(t.device)
        return self._on_device[key]

    def draw_time(self, generator: torch.Generator) -> Int[Tensor, " 1"]:
        """A position for one row of training, uniform."""
        return torch.randint(len(self), (1,), generator=generator)

    def timestep_at(self, share: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The positions at these shares, in [0, 1), of the way from data to noise."""
        return (share * len(self)).long()

    def add_noise(self, x0: Latents, noise: Latents, t: Int[Tensor, " b"]) -> Latents:
        """Draw x_t, float32, from q(x_t | x_0) with the given standard normal noise (DDPM, equation
        4); `t` are positions in `timesteps`.
        """
        return self.at("signal", t) * x0.float() + self.at("sigma", t) * noise.float()

    def posterior(
        self, x0: Latents, x_t: Latents, t: Int[Tensor, " b"]
    ) -> tuple[Latents, Float[Tensor, "b 1 1 1 1"]]:
        """Mean and log-variance of q(x_{t-1} | x_t, x_0) (DDPM, equations 6 and 7), float32.

        The variance at t = 0 is 0; its logarithm is that of t = 1 instead.
        """
        mean = self.at("from_x0", t) * x0.float() + self.at("from_xt", t) * x_t.float()
        return mean, self.at("log_lower", t)

    def predict(
        self, output: Float[Tensor, "b k t h w"], x_t: Latents, t: Int[Tensor, " b"]
    ) -> Prediction:
        """Read a model's output.

        Args:
            output: c channels of predicted noise or v, then c of the variance or none. The latter,
                in [-1, 1], place the log-variance between those of the posterior and of the forward
                step (Nichol and Dhariwal, equation 15); without them it is the forward step's beta.
            x_t: The model's input.
            t: Positions in `timesteps`.

        Raises:
            ValueError: an output of neither c nor 2c channels.
        """
        x_t = x_t.float()
        estimate, variance = _split(output.float(), x_t.shape[1])
        signal, sigma = self.at("signal", t), self.at("sigma", t)
        if self.config.prediction == "v":
            x0 = signal * x_t - sigma * estimate  # Salimans and Ho 2022, appendix D
            noise = sigma * x_t + signal * estimate
        else:
            x0 = self.at("inverse_signal", t) * x_t - self.at("sigma_per_signal", t) * estimate
            noise = estimate
        mean, lower = self.posterior(x0, x_t, t)
        upper = self.at("log_upper", t)
        share = torch.ones_like(x_t) if variance is None else (variance + 1) / 2
        return Prediction(mean, share * upper + (1 - share) * lower, x0, noise)

    def target(self, x0: Latents, noise: Latents, t: Int[Tensor, " b"]) -> Latents:
        """What a model that knew `x0` and `noise` would predict."""
        if self.config.prediction == "noise":
            return noise.float()
        signal, sigma = self.at("signal", t), self.at("sigma", t)
        return signal * noise.float() - sigma * x0.float()

    def exact_prediction(self, x0: Latents, x_t: Latents, t: Tensor, start: Latents) -> Latents:
        """The prediction at `x_t` of a model that knows `x0`, whatever path led there.

        `start`, the noise that sampling began with, matters to a flow only.
        """
        t = t.long()
        noise = x_t.float() - self.at("signal", t) * x0.float()
        return self.target(x0, noise * self.at("inverse_sigma", t), t)

    @property
    def loss_weight(self) -> Float[Tensor, " n"]:
        """Weight of the squared error at each position, float64.

        With min_snr_gamma min(SNR, gamma) on the error of x_0, which is the error of the noise
        divided by the SNR, and that of v divided by SNR + 1 (Hang et al. 2023, section 3.4).
        """
        if self.config.min_snr_gamma is None:
            return torch.ones_like(self.alpha_bar)
        snr = self.alpha_bar / (1 - self.alpha_bar)
        per_x0 = snr if self.config.prediction == "noise" else snr + 1
        return snr.clamp(max=self.config.min_snr_gamma) / per_x0

    def training_loss(
        self,
        model_fn: ModelFn,
        x0: Latents,
        t: Int[Tensor, " b"],
        noise: Latents,
        frame_weight: Float[Tensor, "b t"] | None = None,
    ) -> dict[str, Float[Tensor, " b"]]:
        """Per-row losses of a model at the given timesteps and noise.

        Args:
            model_fn: The model with labels and images bound, such as
                `lambda x, t: model(x, t, y, num_images)`.
            x0: Clean latents, in joint training the clip's frames and then images.
            t: Positions in `timesteps`, uniform in 0 .. steps - 1, one per row.
            noise: Standard normal, like `x0`.
            frame_weight: Weight of each frame's mean in its row's loss; default 1 / t, their mean.

        Returns:
            "loss", the sum of "mse" (of the noise or v; weighted where the config says so) and,
            with a learned variance, "vb": the variational bound's term in bits per dimension, which
            trains the variance only. "mse" itself is not weighted by step.
        """
        x_t = self.add_noise(x0, noise, t)
        output = model_fn(x_t, self.training_timestep(t)).float()
        predicted, variance = _split(output, x0.shape[1])
        mse = frame_mean((self.target(x0, noise, t) - predicted).square(), frame_weight)
        loss = mse * self.at("loss_weight", t).flatten()
        if variance is None:
            return {"loss": loss, "mse": mse}
        detached = torch.cat([predicted.detach(), variance], dim=1)
        vb = frame_mean(self._variational_bound(detached, x0.float(), x_t, t), frame_weight)
        return {"loss": loss + vb, "mse": mse, "vb": vb}

    def _variational_bound(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Latents:
        """KL(q(x_{t-1} | x_t, x_0) || p), or -log p(x_0 | x_1) at t = 0, in bits."""
        true_mean, true_logvar = self.posterior(x0, x_t, t)
        mean, logvar, _, _ = self.predict(output, x_t, t)
        kl = gaussian_kl(true_mean, true_logvar, mean, logvar)
        likelihood = discretized_log_likelihood(x0, mean, logvar / 2)
        first = (t == 0).view(-1, 1, 1, 1, 1)
        return torch.where(first, -likelihood, kl) / math.log(2)


def frame_mean(values: Latents, weight: Float[Tensor, "b t"] | None = None) -> Float[Tensor, " b"]:
    """Each row's mean, or the weighted sum of its frames' means."""
    if weight is None:
        return values.flatten(1).mean(dim=1)
    return (values.mean(dim=(1, 3, 4)) * weight).sum(dim=1)


def gaussian_kl(mean_a: Tensor, logvar_a: Tensor, mean_b: Tensor, logvar_b: Tensor) -> Tensor:
    """Elementwise KL(a || b) of two normal distributions, in nats; shapes broadcast."""
    spread = torch.exp(logvar_a - logvar_b) + (mean_a - mean_b).square() * torch.exp(-logvar_b)
    return (logvar_b - logvar_a + spread - 1) / 2


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Elementwise log-probability, in nats, of the 8-bit bin around `x` in [-1, 1].

    The bins are 2 / 255 wide, the outer two open-ended (DDPM, equation 13); the normal distribution
    function is approximated with tanh, as in the reference code.
    """
    inverse_std = torch.exp(-log_std)
    upper = _normal_cdf((x - mean + 1 / 255) * inverse_std)
    lower = _normal_cdf((x - mean - 1 / 255) * inverse_std)
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _split(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """The noise or v and, if the model learns it, the variance."""
    if output.shape[1] == channels:
        return output, None
    if output.shape[1] == 2 * channels:
        estimate, variance = output.chunk(2, dim=1)
        return estimate, variance
    raise ValueError(
        f"diffusion: the model gave {output.shape[1]} channels for latents of {channels}; it must "
        f"give {channels} (noise or v) or {2 * channels} (and the variance)."
    )
