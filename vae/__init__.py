"""IV-VAE: keyframe-based temporal compression with group causal convolution.

May import `common` and `engine`.
"""

from vae.config import VAEConfig
from vae.image_vae import ImageVAE
from vae.inflate import inflate
from vae.model import VideoVAE
from vae.parts import weights_hash
from vae.posterior import DiagonalGaussian
from vae.tiling import Tiling

__all__ = [
    "DiagonalGaussian",
    "ImageVAE",
    "Tiling",
    "VAEConfig",
    "VideoVAE",
    "inflate",
    "weights_hash",
]
