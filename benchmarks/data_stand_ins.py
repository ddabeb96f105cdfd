"""Made-up data for `benchmarks.data_speed`."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from data.clips.dataset import ClipConfig
from data.clips.options import Cut
from data.importers import ImportResult
from data.shards.index import ShardIndex, write_index
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from data.video.encode import write_video
from data.video.video_record import VideoRecord


def moving_noise(frames: int, height: int, width: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Smooth colored noise that moves, so that a codec has something to do."""
    random = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, height // 8, (width + 4 * frames) // 8, generator=random)
    size = (height, width + 4 * frames)
    large = torch.nn.functional.interpolate(small, size, mode="bicubic").clamp(0, 1)[0]
    image = (large * 255).byte().permute(1, 2, 0).numpy()
    return np.stack([image[:, 4 * t : 4 * t + width] for t in range(frames)])


def packed(folder: Path, videos: int = 8) -> Path:
    """Shards of small videos; made once."""
    out = folder / "shards"
    if not out.exists():
        records = []
        for number in range(videos):
            path = folder / f"{number}.mp4"
            write_video(path, moving_noise(40, 96, 96)[:, ::-1] // (number + 1), 25)
            records.append(VideoRecord(f"video{number}", path, number % 2))
        write_shards(ImportResult(records, ["a", "b"]), out, ShardConfig(reencode=False))
    return out


def link_many(folder: Path, videos: int, per_shard: int = 1000) -> None:
    """An index of many videos whose shards are links to one file."""
    one = packed(folder / "one", videos=1)
    index = ShardIndex.load(one)
    shard, entry = index.shards[0], index.entries[0]
    count = -(-videos // per_shard)
    for number in range(count):
        os.link(one / shard.name, folder / f"{number:06d}.tar")
    shards = [replace(shard, name=f"{n:06d}.tar", count=per_shard) for n in range(count)]
    entries = [replace(entry, key=f"v{n:09d}", label=0) for n in range(count * per_shard)]
    write_index(folder, ["a"], {}, shards, entries)


class BlankVideos:
    """Stands in for videos, which made-up latents do not depend on."""

    config = ClipConfig(folder="none")
    class_names = ("none",)
    hash = ""
    left_out = 0
    frame_rate = 25.0

    def __init__(self, items: int):
        self.items = items

    def __len__(self) -> int:
        return self.items

    def entry(self, index: int) -> Any:
        """A video without a label."""
        return SimpleNamespace(key=f"video{index}", label=0)

    def slack(self, index: int) -> int:
        """Frames by which a clip's start may vary: none."""
        return 0

    def clip(self, index: int, cut: Cut) -> Tensor:
        """One black pixel, `3 1 1 1`."""
        return torch.zeros(3, 1, 1, 1)
