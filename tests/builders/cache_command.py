"""The command that caches latents, on a tiny VAE and three packed videos."""

from pathlib import Path

import torch

from common.cli import parse
from scripts.cache_latents import CacheLatents, run
from tests.builders.packed import pack
from vae import VAEConfig, VideoVAE


def write_inputs(folder: Path) -> Path:
    """A VAE and shards."""
    torch.manual_seed(0)
    VideoVAE(VAEConfig(z_dim=4, dim=8)).save_pretrained(folder / "vae")
    pack(folder, [12, 9, 10])
    return folder


def arguments(inputs: Path, out: Path, **options) -> list[str]:
    values = {
        "vae": inputs / "vae",
        "data.folder": inputs / "shards",
        "out": out,
        "data.frames": 5,
        "data.stride": 2,
        "data.height": 16,
        "data.width": 32,
        "clips_per_video": 2,
        "flip": "true",
        "batch_size": 3,
        "workers": 0,
        "items_per_shard": 8,
        **options,
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def config(inputs: Path, out: Path, **options) -> CacheLatents:
    return parse(CacheLatents, arguments(inputs, out, **options))


def cache(inputs: Path, out: Path, **options) -> None:
    run(config(inputs, out, **options))
