"""The VAE's posterior: one Gaussian per latent element."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from common.posterior import LOGVAR_RANGE

START_LOGVAR = -6.0
"""Log-variance of the posterior before training: a standard deviation of 0.05 beside means of 1."""


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent Gaussians, in float32 or wider.

    `sample` and `kl` clamp the log-variance to [-30, 20], so that exp cannot overflow.
    """

    mean: Float[Tensor, "b c t h w"]
    logvar: Float[Tensor, "b c t h w"]

    @classmethod
    def from_moments(cls, moments: Float[Tensor, "b c2 t h w"]) -> "DiagonalGaussian":
        """Split moments [mean | log-variance] along the channels."""
        wide = torch.promote_types(moments.dtype, torch.float32)
        return cls(*moments.to(wide).chunk(2, dim=1))

    @property
    def moments(self) -> Float[Tensor, "b c2 t h w"]:
        """[mean | log-variance] along the channels."""
        return torch.cat([self.mean, self.logvar], dim=1)

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c t h w"]:
        """One draw. Noise is made on the generator's device: a CPU generator serves any device."""
        device = generator.device if generator is not None else self.mean.device
        return self.at(torch.randn(self.mean.shape, generator=generator, device=device))

    def at(self, noise: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """mean + std * noise: the draw that belongs to this standard normal noise."""
        return self.mean + (0.5 * self._logvar()).exp() * noise.to(self.mean)

    def mode(self) -> Float[Tensor, "b c t h w"]:
        """The mean, which is the mode of a Gaussian."""
        return self.mean

    def kl(self) -> Float[Tensor, "b c t h w"]:
        """KL divergence from N(0, 1) of each element, in nats."""
        logvar = self._logvar()
        return 0.5 * (self.mean.square() + logvar.exp() - 1 - logvar)

    def _logvar(self) -> Tensor:
        return self.logvar.clamp(*LOGVAR_RANGE)


@torch.no_grad()
def start_narrow(weight: Tensor, bias: Tensor | None) -> None:
    """Let the draws of a new model stay near their mean at first.

    With log-variances around 0 the decoder would see as much noise as signal, and the noise of a
    draw fades slowly, because the KL term is small.

    Args:
        weight, bias: views, taken without gradients, of what makes the log-variances; written to.
    """
    weight.div_(10)  # in place: assigning to a slice of a fake tensor corrupts memory (torch 2.12)
    if bias is not None:
        bias.fill_(START_LOGVAR)
