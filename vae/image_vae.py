"""The image VAE that a video VAE is inflated from."""

from vae.config import VAEConfig
from vae.model import VideoVAE


class ImageVAE(VideoVAE, library_name="ivvae", tags=["image-vae"]):
    """One branch alone, frame by frame: the image VAE that a video VAE is inflated from.

    Takes `b 3 t h w` like the video VAE; every frame is an image of its own, so any t is allowed.
    Build it from `VAEConfig.image()` of the video VAE it is for.
    """

    def __init__(self, config: VAEConfig):
        if config.branches != 1 or not config.is_image:
            raise ValueError(
                "an image VAE has one branch and no temporal_downsample, got branches="
                f"{config.branches}, temporal_downsample={config.temporal_downsample}: "
                "use config.image()"
            )
        super().__init__(config)
