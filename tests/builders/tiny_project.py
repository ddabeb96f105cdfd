"""All that the commands read, small: videos, shards, VAEs, latents, a Latte, clips."""

import shutil
from pathlib import Path

import torch

from data.clips.dataset import PackedClips
from data.importers.folders import Folder
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from scripts import cache_latents, train_latte
from scripts.cache_latents import CacheLatents
from tests.builders.clip_folders import write_folders
from tests.builders.training_runs import MODEL, SIZE, latte_run
from tests.builders.videos import write_barcode_video
from vae import VideoVAE

LENGTHS = [12, 14, 16, 18]
"""Frames of the videos, which are of two classes in turn."""


def make_project(root: Path) -> Path:
    """Write it all into `root`.

    videos, flawed (these, a short and a broken one), shards, vae, latents (5 frames), images (1
    frame), latte (a run of 2 steps); other_videos, other_shards, other_vae and other_latents; real,
    fake and tiny of `clip_folders`.
    """
    for prefix, seed in (("", 0), ("other_", 1)):
        for number, frames in enumerate(LENGTHS):
            path = root / f"{prefix}videos" / "ab"[number % 2] / f"{number}.mp4"
            write_barcode_video(path, frames + seed, 48, 64, shade=40 * number)
        found = Folder(root=root / f"{prefix}videos").scan()
        options = ShardConfig(reencode=False, min_frames=1, videos_per_shard=2)
        shards = root / f"{prefix}shards"
        write_shards(found.records, shards, options, found.class_names, progress=False)
        torch.manual_seed(seed)
        VideoVAE(MODEL).save_pretrained(root / f"{prefix}vae")
    for name, data, frames in (
        ("latents", "shards", 5),
        ("images", "shards", 1),
        ("other_latents", "other_shards", 5),
    ):
        places = {"vae": str(root / "vae"), "out": str(root / name)}
        clips = PackedClips(folder=str(root / data), frames=frames, **SIZE)
        cache_latents.run(CacheLatents(**places, data=clips, workers=0))
    train_latte.run(latte_run(root / "latte", root / "latents", steps=2))
    shutil.copytree(root / "videos", root / "flawed")
    write_barcode_video(root / "flawed" / "a" / "short.mp4", 9, 48, 64)
    (root / "flawed" / "b" / "broken.mp4").write_bytes(b"broken")
    write_folders(root)
    shutil.rmtree(root / "one")
    return root
