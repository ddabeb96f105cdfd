"""How fast cached latents load, next to the same moments as .npy files in webdataset tars."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from webdataset.compat import WebDataset
from webdataset.writer import ShardWriter

from data.dataset import ClipConfig, ClipDataset
from data.latent_items import CacheConfig
from data.latent_writer import LatentCache
from data.latents import LatentDataset
from data.plan import BatchPlan
from engine.cli import main


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure reading of latents from a warm page cache, in one process; prints ratios."""

    items: int = 1024
    """Latents, of 32 x 5 x 32 x 32 moments each (320 KiB)."""
    shard_items: int = 256
    """Latents per shard, for both formats."""
    rounds: int = 3
    """Repetitions; the fastest counts."""

    def __post_init__(self) -> None:
        if min(self.items, self.shard_items, self.rounds) < 1:
            raise ValueError("items, shard_items and rounds must be at least 1")


def run(config: Config) -> None:
    """Write both formats, read both, print items per second and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        latents = _write_latents(Path(folder, "latents"), config)
        tars = _write_tars(Path(folder), latents, config)
        order = BatchPlan(latents.shard_sizes, 1, seed=0).order(0).tolist()
        mean = LatentDataset(latents.folder, posterior="mean")
        readers = {
            "webdataset tar + npy, in order": lambda: _read_tars(tars),
            "shards, shuffled, raw moments": lambda: (latents.raw(i)["moments"] for i in order),
            "shards, shuffled, posterior mean": lambda: (mean[0, i]["latent"] for i in order),
            "shards, shuffled, posterior sample": lambda: (latents[0, i]["latent"] for i in order),
        }
        rates = {name: _rate(reader, config) for name, reader in readers.items()}
    base = next(iter(rates.values()))
    for name, rate in rates.items():
        print(f"{name:36} {rate:8.0f} items/s  {rate / base:5.1f}x")


def _write_latents(folder: Path, config: Config) -> LatentDataset:
    cache = LatentCache(
        folder,
        cast(ClipDataset, _Blank(config.items)),
        {"class": "none", "sha256": ""},
        (16, 5, 32, 32),
        CacheConfig(shard_items=config.shard_items),
    )
    cache.begin(cache.shards)
    noise = torch.Generator().manual_seed(0)
    cache.write(lambda x: torch.randn(len(x), 32, 5, 32, 32, generator=noise), cache.pending())
    cache.finish()
    return LatentDataset(folder)


def _write_tars(folder: Path, latents: LatentDataset, config: Config) -> list[str]:
    pattern = str(folder / "%06d.tar")
    with ShardWriter(pattern, maxcount=config.shard_items, verbose=0) as writer:
        for index in range(config.items):
            moments = latents.raw(index)["moments"].numpy()
            writer.write({"__key__": f"{index:08d}", "npy": moments, "cls": 0})
    return sorted(map(str, folder.glob("*.tar")))


def _read_tars(tars: list[str]) -> Iterator[Tensor]:
    for sample in cast(Iterable[dict[str, Any]], WebDataset(tars, shardshuffle=False).decode()):
        yield torch.from_numpy(sample["npy"])


def _rate(reader: Callable[[], Iterable[Tensor]], config: Config) -> float:
    times = []
    for _ in range(config.rounds):
        start = time.perf_counter()
        count = sum(x.clone().shape[1] == 5 for x in reader())  # the copy reads all of a map
        times.append(time.perf_counter() - start)
        assert count == config.items
    return config.items / min(times)


class _Blank:
    """Stands in for videos, which the made-up latents do not depend on."""

    config = ClipConfig(folder="none")
    class_names = ("none",)
    hash = ""
    left_out = 0

    def __init__(self, items: int):
        self.items = items

    def __len__(self) -> int:
        return self.items

    def sample(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(key=f"video{index}", label=0)

    def slack(self, index: int) -> int:
        return 0

    def clip(self, index: int, start: int, flip: bool) -> Tensor:
        return torch.zeros(3, 1, 1, 1)


if __name__ == "__main__":
    main(Config, run)
