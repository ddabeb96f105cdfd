"""Reading cached latents: posterior moments in safetensors shards, sampled and normalized."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from common.files import read_json, sha256_file
from common.posterior import LOGVAR_RANGE
from common.seeding import fold, generator
from data.latents.shards import REPAIR, ShardReader

Scaling = Literal["cache", "vae"]
SCHEMA = 2
MANIFEST = "manifest.json"
OPEN_SHARDS = 64  # mapped at once per process; a shuffled order touches at most 30 at a time


class LatentDataset(Dataset):
    """Map-style data set over a latent cache: `dataset[(epoch, index)]`.

    The cache holds raw posterior moments; a sample is drawn here, anew each epoch, from
    (seed, epoch, key) alone, and normalized per channel by the statistics of the whole cache.

    Args:
        folder: what `LatentCache` wrote.
        posterior: "sample" draws from the posterior, "mean" takes its mean.
        seed: of the posterior's noise.
        scaling: normalize by the cache's own statistics, or by the mean and std that are documented
            of the VAE that made it.

    Attributes:
        manifest: everything known about the cache.
        shard_sizes: items per shard, for `BatchOrder`.
        mean, std: that `normalize_` uses, per channel, float32 of shape (c,): of raw sampled
            latents, or documented.
        latent_shape: (c, t, h, w).
        class_names, encoder_hash: as cached; hash: sha256 of the manifest, which checkpoints keep.

    Raises:
        ValueError: no cache, an incomplete one, another schema, missing or truncated shards, or
            scaling "vae" where nothing is documented.
    """

    def __init__(
        self,
        folder: str | Path,
        posterior: Literal["sample", "mean"] = "sample",
        seed: int = 0,
        scaling: Scaling = "cache",
    ):
        if posterior not in ("sample", "mean"):
            raise ValueError(f"posterior={posterior!r} must be 'sample' or 'mean'")
        self.folder = Path(folder)
        self.posterior = posterior
        self.seed = seed
        self.manifest = read_manifest(self.folder)
        for shard in self.manifest["shards"]:
            path = self.folder / shard["file"]
            size = path.stat().st_size if path.exists() else 0
            if size != shard["bytes"]:
                raise ValueError(f"{path}: {size} bytes instead of {shard['bytes']}. {REPAIR}")
        self.hash = sha256_file(self.folder / MANIFEST)
        self.encoder_hash: str = self.manifest["vae"]["encoder_sha256"]
        self.class_names: list[str] = self.manifest["class_names"]
        c, t, h, w = self.manifest["latent_shape"]
        self.latent_shape: tuple[int, int, int, int] = (c, t, h, w)
        self.mean, self.std = self._statistics(scaling)
        self.shard_sizes: list[int] = [shard["count"] for shard in self.manifest["shards"]]
        self._ends = np.cumsum(self.shard_sizes)
        self._open: dict[int, ShardReader] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """The latent of item `index` in `epoch`, `item = (epoch, index)`.

        Returns:
            `latent` float32 `c t h w`, normalized; `label`, -1 without one; `key`.
        """
        epoch, index = item
        latent, label, key = self.draw(epoch, index)
        return {"latent": self.normalize_(latent), "label": label, "key": key}

    def draw(self, epoch: int, index: int) -> tuple[Float[Tensor, "c t h w"], int, str]:
        """A raw latent, not normalized, of the posterior of item `index`; its label; its key."""
        row = self._row(index)
        if self.posterior == "mean":
            return row["moments"][: self.latent_shape[0]].float(), row["label"], row["key"]
        mean, logvar = row["moments"].float().chunk(2)  # c t h w each
        noise = generator(self.seed, "posterior", epoch, row["key"])
        std = logvar.clamp_(*LOGVAR_RANGE).mul_(0.5).exp_()
        z = torch.randn(mean.shape, generator=noise).mul_(std).add_(mean)
        return z, row["label"], row["key"]

    def raw(self, index: int) -> dict[str, Any]:
        """Item `index` as stored.

        Returns:
            `moments` float16 `2c t h w`, mean then log-variance, of raw latents; `label`; `key`,
            unique; `start`, the clip's first source frame; `flip`, whether it is mirrored.

        Raises:
            IndexError: no such item.
            ValueError: a damaged shard or a label without a class name.
        """
        row = self._row(index)
        return {**row, "moments": row["moments"].clone()}

    def label(self, index: int) -> int:
        """The label of item `index`; -1 without one."""
        return self._row(index)["label"]

    def describe(self) -> dict[str, Any]:
        """What a model that is trained on them must remember, as `TrainingMetadata` names it."""
        return {
            "encoder_hash": self.encoder_hash,
            "mean": tuple(self.mean.tolist()),
            "std": tuple(self.std.tolist()),
            "class_names": tuple(self.class_names),
            "frame_rate": self.manifest["frame_rate"],
            "frames": self.manifest["source"]["frames"],
        }

    def normalize_(self, z: Float[Tensor, "c t h w"]) -> Float[Tensor, "c t h w"]:
        """A raw latent to (z - mean) / std per channel, in place."""
        mean, std = (values[:, None, None, None] for values in (self.mean, self.std))
        return z.sub_(mean).div_(std)

    def check_encoder(self, encoder_hash: str) -> None:
        """Refuse (`ValueError`) a VAE whose encoder is not the one that made these latents."""
        if encoder_hash != self.encoder_hash:
            raise ValueError(
                f"{self.folder}: these latents come from the encoder {self.encoder_hash[:12]}, not "
                f"from {encoder_hash[:12]}. Use a VAE with that encoder, or cache the latents "
                "again with this one."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # memory maps do not travel to other processes

    def _statistics(self, scaling: Scaling) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        if scaling not in ("cache", "vae"):
            raise ValueError(f"scaling={scaling!r} must be 'cache' or 'vae'")
        values = self.manifest["statistics"]
        if scaling == "vae":
            values = self.manifest["vae"].get("scaling")
            if values is None:
                raise ValueError(
                    f"{self.folder}: its VAE has no documented scaling of latents: use scaling "
                    "cache, the cache's own statistics"
                )
        channels = self.latent_shape[0]
        mean, std = (torch.tensor(values[name]).expand(channels) for name in ("mean", "std"))
        return mean, std

    def _row(self, index: int) -> dict[str, Any]:
        """Like `raw`, but `moments` is the mapped file itself: not to be changed."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)} in {self.folder}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._shard(number).item(index - int(self._ends[number]) + self.shard_sizes[number])

    def _shard(self, number: int) -> ShardReader:
        if number not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.pop(next(iter(self._open)))
            path = self.folder / self.manifest["shards"][number]["file"]
            self._open[number] = ShardReader(path, len(self.class_names))
        return self._open[number]


class JointLatents(Dataset):
    """Clips, each with independent images behind it on the t axis: `dataset[(epoch, index)]`.

    Which images follow a clip depends on (seed, epoch, the clip's key) alone; they may be of any
    video. All latents are normalized by the statistics of the clips, which sampling inverts.

    Args:
        videos: latents of clips.
        images: latents of single frames by the same VAE: a cache made with `frames=1`.
        count: images per clip.

    Attributes:
        shard_sizes: those of the clips, for `BatchOrder`.
        latent_shape: (c, t, h, w) of the clips, without the images.

    Raises:
        ValueError: another encoder, other classes, another size, or images that are clips.
    """

    def __init__(self, videos: LatentDataset, images: LatentDataset, count: int):
        if count < 1:
            raise ValueError(f"count={count} must be at least 1 image per clip")
        check_alike(videos, images, classes=True, frames=1)
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


def check_alike(
    latents: LatentDataset, other: LatentDataset, *, classes: bool, frames: int | None = None
) -> None:
    """Refuse latents that do not go with `latents`, before anything slow.

    Args:
        classes: their classes must be the same.
        frames: latent frames that `other` must have; by default as many as `latents`.

    Raises:
        ValueError: another encoder, another shape, or other classes.
    """
    other.check_encoder(latents.encoder_hash)
    c, t, h, w = latents.latent_shape
    if other.latent_shape != (wanted := (c, frames or t, h, w)):
        raise ValueError(
            f"{other.folder}: latents of shape {other.latent_shape}, but beside those of "
            f"{latents.folder} they must be of {wanted}. Cache them with the same size"
            + (f" and data.frames={frames}." if frames else ".")
        )
    if classes and other.class_names != latents.class_names:
        raise ValueError(
            f"{other.folder}: its classes are not those of {latents.folder}. "
            "Cache both from shards with the same classes."
        )


def check_labeled(latents: LatentDataset) -> None:
    """Refuse (`ValueError`) latents without a label before the first comes up in a batch."""
    without = sum(latents.label(i) < 0 for i in range(len(latents)))
    if without:
        raise ValueError(
            f"{latents.folder}: {without} of {len(latents)} latents have no label; a "
            "class-conditional model needs one for each"
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a latent cache.

    Raises:
        ValueError: none there, because the cache is incomplete, or of another schema.
    """
    if folder.is_dir() and not (folder / MANIFEST).exists():
        raise ValueError(
            f"{folder}: no {MANIFEST} there. It is written when the latent cache is complete: run "
            "scripts/cache_latents.py (again), or name the folder of a cache."
        )
    manifest = read_json(folder / MANIFEST)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"{folder / MANIFEST}: schema {schema}, but this version reads {SCHEMA}. "
            "Cache the latents again."
        )
    return manifest
