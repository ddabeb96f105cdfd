"""First frames of cached latents, which generated clips continue."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from data.latents.dataset import LatentDataset


class FirstFrames:
    """The first latent frames of each item of a cache, once they are known to fit a model.

    Args:
        folder: of a latent cache.
        count: first latent frames of each.
        encoder_hash: of the VAE that made the model's latents.
        latent_shape: (c, t, h, w) that the model makes.
        clips: that are to be continued, one per item.

    Raises:
        ValueError: latents of another encoder or size, too few items, or nothing left to make.
    """

    def __init__(
        self,
        folder: str | Path,
        count: int,
        *,
        encoder_hash: str,
        latent_shape: tuple[int, int, int, int],
        clips: int,
    ):
        self.latents, self.count = LatentDataset(folder, "mean"), count
        self.latents.check_encoder(encoder_hash)
        c, t, h, w = self.latents.latent_shape
        wanted_c, wanted_t, *size = latent_shape
        if (c, h, w) != (wanted := (wanted_c, *size)):
            raise ValueError(
                f"{folder}: latents of (c, h, w) = {(c, h, w)}, but the model makes {wanted}. "
                "Cache them at its size."
            )
        if count > min(t, wanted_t - 1):
            raise ValueError(
                f"known_frames={count}: {folder} has {t} latent frames, and of the {wanted_t} of a "
                "clip at least one must be left to sample"
            )
        if clips > len(self.latents):
            raise ValueError(f"num_clips={clips}: {folder} has {len(self.latents)} latents")

    def __call__(self, items: Sequence[int]) -> Float[Tensor, "b c k h w"]:
        """Raw latents of the first frames of these items."""
        return torch.stack([self.latents.draw(0, i)[0][:, : self.count] for i in items])

    def key(self, item: int) -> str:
        """The video that an item was made from."""
        return self.latents.raw(item)["key"]
