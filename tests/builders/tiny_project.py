"""All that the commands read, small: videos, shards, VAEs, latents, a Latte, clips."""

import shutil
from pathlib import Path

import torch
import yaml

from data.clips.dataset import PackedClips
from data.importers.folders import Folder
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from eval.features.classifier import ClassifierConfig, ClipClassifier
from scripts import cache_latents, train_latte
from scripts.cache_latents import CacheLatents
from tests.builders.clip_folders import write_folders
from tests.builders.packed import pack
from tests.builders.training_runs import MODEL, SIZE, latte_run
from tests.builders.videos import write_barcode_video
from vae import VAEConfig, VideoVAE
from vae.convert import to_released

LENGTHS = [12, 14, 16, 18]
"""Frames of the videos, which are of two classes in turn."""


def make_project(root: Path) -> Path:
    """Write it all into `root`.

    videos, flawed (these, a short and a broken one), shards, vae, latents (5 frames), images (1
    frame), latte (a run of 2 steps); other_videos, other_shards, other_vae and other_latents; real,
    fake and tiny of `clip_folders`; long, two_classes and configs for experiments; tars and
    released.pth of others.
    """
    for prefix, seed in (("", 0), ("other_", 1)):
        for number, frames in enumerate(LENGTHS):
            path = root / f"{prefix}videos" / "ab"[number % 2] / f"{number}.mp4"
            write_barcode_video(path, frames + seed, 48, 64, shade=40 * number)
        found = Folder(root=root / f"{prefix}videos").scan()
        options = ShardConfig(reencode=False, min_frames=1, videos_per_shard=2)
        shards = root / f"{prefix}shards"
        write_shards(found, shards, options)
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
    _for_experiments(root)
    _of_others(root)
    return root


def _for_experiments(root: Path) -> None:
    """What ablate and learning_curve read, with clips of 17 frames."""
    shards = pack(root / "long", [18, 20])
    clips = PackedClips(folder=str(shards), frames=17, **SIZE)
    places = {"vae": str(root / "vae"), "out": str(root / "long" / "latents")}
    cache_latents.run(CacheLatents(**places, data=clips, workers=0))
    torch.manual_seed(0)
    ClipClassifier(ClassifierConfig(num_classes=2, width=8)).save_pretrained(root / "two_classes")
    train = {"folder": "x", "steps": 2, "global_batch_size": 2, "save_every": 2}
    latte = {"size": "custom", "hidden_size": 16, "depth": 2, "num_heads": 2}
    for name, values in {
        "ablate_video": {
            "train": train,
            "data": {"folder": str(root / "shards"), "frames": 5, **SIZE},
            "model": {"z_dim": 4, "dim": 4, "channel_multipliers": [1, 1, 2, 2], "num_blocks": 1},
            "loss": {"perceptual": "none"},
            "num_previews": 0,
        },
        "curve_train": {
            "train": train,
            "latents": places["out"],
            "model": {**latte, "class_conditional": True},
        },
        "curve_samples": {
            **{"latte": "x", "vae": str(root / "vae"), "out": "x", "num_clips": 2},
            "sampler": {"method": "ddim", "steps": 2},
        },
        "chain_latents": {"data": {"folder": str(root / "shards"), "frames": 5, **SIZE}},
        "chain_card": {"num_clips": 1, "denoiser": {"steps": 2, "hidden_size": 8}},
        "chain_score": {
            **{"real": str(root / "shards"), "classifier": str(root / "two_classes")},
            **{"frames": 4, "stride_real": 1, "skip_fake": 0, "num_clips": 2, "resamples": 0},
        },
    }.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(values))


def _of_others(root: Path) -> None:
    """Tars of another tool, one video in each, and a checkpoint in the authors' format."""
    pack(root / "single", [5, 5, 5, 5], per_shard=1)
    (root / "tars").mkdir()
    for tar in (root / "single" / "shards").glob("*.tar"):
        shutil.copy(tar, root / "tars")
    torch.manual_seed(0)
    torch.save(to_released(VideoVAE(VAEConfig(z_dim=4, dim=4))), root / "released.pth")
