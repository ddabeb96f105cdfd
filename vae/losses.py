"""The reconstruction loss of IV-VAE (supplement, Eq. 5); its adversarial term is in
`vae.adversarial`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from common.config import Config
from common.perceptual import load_lpips
from vae.posterior import DiagonalGaussian

REFERENCE_PIXELS = 256 * 256
"""Eq. 5 brings the loss of any resolution to that of 256 x 256."""
REFERENCE_VALUES = 3 * REFERENCE_PIXELS
"""(256 * 256) / (h w) times the 3 h w values of an image: what a mean over the values of an image
counts in Eq. 5, at any resolution."""


@dataclass(frozen=True, kw_only=True)
class VAELossConfig(Config):
    """Weights of Eq. 5: MAE + LPIPS + kl_weight * KL, each a sum over the image."""

    kl_weight: Annotated[float, Ge(0)] = 3e-6
    """Weight of the KL term (alpha)."""
    perceptual: Literal["none", "vgg", "alex"] = "vgg"
    """Backbone of LPIPS; none leaves the term out."""
    perceptual_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of LPIPS per pixel and color, relative to MAE."""
    perceptual_weights: str | None = None
    """File of the backbone's ImageNet weights; null looks at IVVAE_VGG16 (or IVVAE_ALEXNET),
    weights/, ~/.cache/ivvae/ and torch hub's cache."""


class VAELoss(nn.Module):
    """Eq. 5: (256 * 256) / (h w) * (MAE + LPIPS + kl_weight * KL), the mean over frames of sums per
    image.

    LPIPS is one number per image; as a sum over the image it counts once per value, 3 h w times.
    The KL of a clip is shared equally by its frames.
    """

    def __init__(self, config: VAELossConfig, *, lpips_bf16: bool = False):
        """`lpips_bf16`: LPIPS runs under autocast to bfloat16; its gradients would not fit float16.

        Raises: ValueError if LPIPS is wanted and its weights are missing.
        """
        super().__init__()
        self.config = config
        self.lpips_bf16 = lpips_bf16
        self.perceptual = None
        if config.perceptual != "none":
            self.perceptual = load_lpips(config.perceptual, config.perceptual_weights)
            if lpips_bf16:
                self.perceptual.keep_bf16_weights()

    def forward(
        self,
        reconstruction: Float[Tensor, "b 3 t h w"],
        video: Float[Tensor, "b 3 t h w"],
        posterior: DiagonalGaussian,
        *,
        encoded: Float[Tensor, "b 3 t h2 w2"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Scalars in float32 or wider.

        Args:
            encoded: the clip that the posterior is of, where `video` is another.
        Returns: "loss" (Eq. 5, what is minimized), and for people "mae" (mean over pixels, in [-1,
        1] units), "kl" (nats per latent element) and "lpips" (mean over frames).
        """
        reconstructed = self.reconstruction(reconstruction, video)
        regular = self.regularization(posterior, video if encoded is None else encoded)
        return {**reconstructed, **regular, "loss": reconstructed["loss"] + regular["loss"]}

    def reconstruction(
        self, reconstruction: Float[Tensor, "b 3 t h w"], video: Float[Tensor, "b 3 t h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms that compare pixels: "loss" is their part of Eq. 5."""
        reconstruction, video = wide(reconstruction), wide(video)
        mae = (reconstruction - video).abs().mean()
        if self.perceptual is None:
            return {"mae": mae, "loss": REFERENCE_VALUES * mae}
        with torch.autocast(video.device.type, torch.bfloat16, enabled=self.lpips_bf16):
            distances = self.perceptual(reconstruction, video)  # b t
        lpips = wide(distances).mean()
        loss = REFERENCE_VALUES * (mae + self.config.perceptual_weight * lpips)
        return {"mae": mae, "lpips": lpips, "loss": loss}

    def regularization(
        self, posterior: DiagonalGaussian, video: Float[Tensor, "b 3 t h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """The KL term: "loss" is its part of Eq. 5."""
        b, _, t, h, w = video.shape
        kl = posterior.kl()
        per_image = kl.sum() / (b * t)
        loss = REFERENCE_PIXELS / (h * w) * self.config.kl_weight * per_image
        return {"kl": kl.mean(), "loss": loss}


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
