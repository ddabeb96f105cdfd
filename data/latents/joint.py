"""Clips and images together, as latents, for joint training of a video model."""

from typing import Any

import torch
from torch.utils.data import Dataset

from common.seeding import fold
from data.latents.dataset import LatentDataset


class JointLatents(Dataset):
    """Clips, each with independent images behind it on the t axis: `dataset[(epoch, index)]`.

    Which images follow a clip depends on (seed, epoch, the clip's key) alone; they may be of any
    video. All latents are normalised by the statistics of the clips, which sampling inverts.

    Args:
        videos: latents of clips.
        images: latents of single frames by the same VAE: a cache made with `frames=1`.
        count: images per clip.

    Attributes:
        shard_sizes: those of the clips, for `BatchOrder`.
        latent_shape: (c, t, h, w) of the clips, without the images.

    Raises:
        ValueError: another VAE, other classes, another size, or images that are clips.
    """

    def __init__(self, videos: LatentDataset, images: LatentDataset, count: int):
        if count < 1:
            raise ValueError(f"count={count} must be at least 1 image per clip")
        c, _, h, w = videos.latent_shape
        if images.latent_shape != (c, 1, h, w):
            raise ValueError(
                f"{images.folder}: latents of shape {images.latent_shape}, but {videos.folder} "
                f"needs images of {(c, 1, h, w)}. Cache them with frames=1 and the same size."
            )
        images.check_vae(videos.vae_hash)
        if images.class_names != videos.class_names:
            raise ValueError(
                f"{images.folder}: its classes are not those of {videos.folder}. "
                "Cache both from shards with the same classes."
            )
        self.videos, self.images, self.count = videos, images, count
        self.shard_sizes = videos.shard_sizes
        self.latent_shape = videos.latent_shape

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """A clip and its images.

        Returns:
            `latent` float32 `c (t + count) h w`, the images last; `label` of the clip, -1 without
            one; `image_labels`, int64 of shape (count,); `key` of the clip.
        """
        epoch, index = item
        clip, label, key = self.videos.draw(epoch, index)
        parts, labels = [clip], []
        for number in range(self.count):
            chosen = fold(self.videos.seed, "joint", epoch, key, number) % len(self.images)
            image, image_label, _ = self.images.draw(epoch, chosen)
            parts.append(image)
            labels.append(image_label)
        latent = torch.cat(parts, dim=1)  # c (t count) h w
        return {
            "latent": self.videos.normalize_(latent),
            "label": label,
            "image_labels": torch.tensor(labels),
            "key": key,
        }
