"""Caches of the moments of a made-up VAE."""

import json
from pathlib import Path

import torch

from common.pixels import to_float
from data.clips.dataset import ClipConfig, ClipDataset
from data.latents.shards import CacheConfig
from data.latents.writer import LatentCache

SHAPE = (2, 2, 8, 8)
VAE = {"class": "Fake", "config": {"z_dim": 2}, "encoder_sha256": "0123456789abcdef"}


def encode(video: torch.Tensor) -> torch.Tensor:
    """Moments of a made-up VAE; both depend on the pixels and the channels differ in scale."""
    small = to_float(video)[:, :2, ::4, ::4, ::4]
    scale = torch.tensor([1.0, 30.0])[:, None, None, None]
    return torch.cat(
        [small * scale + scale, small - torch.tensor([1.0, 5.0])[:, None, None, None]], 1
    )


def make_cache(folder, packed, vae=VAE, shape=SHAPE, **options) -> LatentCache:
    """Two clips a video and their mirror images, three items a shard; nothing is written yet."""
    names = {"clips_per_video", "flip", "seed", "items_per_shard"}
    cache = {"clips_per_video": 2, "flip": True, "items_per_shard": 3}
    cache |= {k: v for k, v in options.items() if k in names}
    clips = {"frames": 5, "stride": 2, "height": 32, "width": 32}
    clips |= {k: v for k, v in options.items() if k not in names}
    dataset = ClipDataset(ClipConfig(folder=str(packed), **clips), seed=0)
    return LatentCache(folder, dataset, vae, shape, CacheConfig(**cache))


def complete(cache: LatentCache, encode=encode, ranks=1, **options) -> list[int]:
    """What the script does, for all processes in turn; returns the shards that were made."""
    todo = [cache.pending(rank, ranks) for rank in range(ranks)]
    cache.begin(sum(map(len, todo)))
    for shards in todo:
        cache.write(encode, shards, batch_size=2, **options)
    cache.finish()
    return sorted(shard for shards in todo for shard in shards)


def damage(path: Path) -> None:
    """Flip the last bit."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(folder: Path, **changes) -> None:
    """Change entries of the manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
