"""Folders of short clips, real and generated, and a classifier to measure them with."""

from pathlib import Path

import numpy as np
import torch

from data.video.encode import write_video
from eval.features.classifier import ClassifierConfig, ClipClassifier
from tests.builders.videos import barcode_frame


def write_folder(folder: Path, shades: list[int], noise: float = 0, fps: float = 8) -> Path:
    """One clip of six frames, 32x32, per shade."""
    rng = np.random.default_rng(0)
    for shade in shades:
        clip = np.stack([barcode_frame(i, 32, 32, shade) for i in range(6)])
        clip = (clip + noise * rng.standard_normal(clip.shape)).clip(0, 255).astype(np.uint8)
        write_video(folder / f"{shade}.mkv", clip, fps, codec="ffv1")
    return folder


def write_folders(root: Path) -> Path:
    """`real`, `fake`, `one` with a single clip, and the classifier `tiny`."""
    write_folder(root / "real", [0, 60, 120, 180])
    write_folder(root / "fake", [10, 70, 130, 190], noise=60)
    write_folder(root / "one", [0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ClipClassifier(ClassifierConfig(num_classes=3, width=8)).save_pretrained(root / "tiny")
    return root
