"""Evaluation against its usual implementations: equal results, and the ratio of times in one run.

Fréchet distance at 400 and 2,048 dimensions against the route through `scipy.linalg.sqrtm`; SSIM of
a video against scikit-image and, where it is installed, torchmetrics, frame by frame; memory while
features of few and of many clips are made.
"""

import importlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from einops import rearrange
from skimage.metrics import structural_similarity

from benchmarks.shared import seconds_in_turns
from common.cli import main
from common.measure import peak_memory_bytes
from data.video.encode import write_video
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.extractors import Extractor
from eval.features.feature_cache import Extraction, extract_features
from eval.metrics.frechet import frechet_distance, moments
from eval.metrics.reconstruction import ssim


@dataclass(frozen=True, kw_only=True)
class EvaluationSpeed:
    """Compare the evaluation's numerics, speed and memory with the usual implementations."""

    dimensions: tuple[int, ...] = (400, 2048)
    """Of the features."""
    num_clips: int = 2048
    """Feature vectors per set, and clips that memory is measured with."""
    frames: int = 17
    """Of the video for SSIM."""
    size: int = 256
    """Height and width of the video, pixels."""
    repeats: int = 5
    """Runs of each; the fastest counts."""
    threads: int = 1
    """Of torch and BLAS where it follows torch."""


def run(config: EvaluationSpeed) -> None:
    """Print one line per comparison."""
    torch.set_num_threads(config.threads)
    _memory(config)  # first: the peak is that of the process so far
    rng = np.random.default_rng(0)
    for dimensions in config.dimensions:
        shape = (config.num_clips, dimensions)
        a, b = moments(rng.normal(size=shape)), moments(1.3 * rng.normal(size=shape) + 0.2)
        _compare(
            f"Fréchet distance, {dimensions} dimensions, against scipy.linalg.sqrtm",
            lambda a=a, b=b: frechet_distance(*a, *b),
            lambda a=a, b=b: _sqrtm_distance(*a, *b),
            config.repeats if dimensions < 1000 else 1,
        )
    frames = (1, 3, config.frames, config.size, config.size)
    video = torch.from_numpy(rng.uniform(-1, 1, frames))
    noisy = (video + 0.1 * torch.from_numpy(rng.normal(size=frames))).clamp(-1, 1)
    others = {"scikit-image": _skimage_ssim}
    if importlib.util.find_spec("torchmetrics"):
        others["torchmetrics"] = _torchmetrics_ssim
    for name, other in others.items():
        _compare(
            f"SSIM, {config.frames}x{config.size}x{config.size}, against {name}",
            lambda: ssim(video, noisy).numpy(),
            lambda other=other: other(video, noisy),
            config.repeats,
        )


def _memory(config: EvaluationSpeed) -> None:
    """Peak memory of this process while clips are decoded and brought to features."""
    network = torch.nn.AdaptiveAvgPool3d(4)
    extractor = Extractor(
        name="means",
        network=network,
        run=lambda video: network(video).flatten(1),
        weights_sha256="",
        published=False,
        score="fvd_means",
        dimensions=3 * 4**3,
    )
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "0.mkv")
        shape = (16, config.size, config.size, 3)
        pixels = np.random.default_rng(0).integers(0, 64, shape, dtype=np.uint8)
        write_video(first, pixels, 8, codec="ffv1")
        for i in range(1, config.num_clips):
            os.link(first, Path(folder, f"{i}.mkv"))
        peaks = []
        for count in (min(64, config.num_clips), config.num_clips):
            source = ClipSource(folder, ClipProtocol(num_clips=count), progress=False)
            started = time.perf_counter()
            extract_features(source, extractor, Extraction())
            peaks.append((count, peak_memory_bytes(), time.perf_counter() - started))
    for count, peak, seconds in peaks:
        print(
            f"features of {count} clips of 16x{config.size}x{config.size}, apart from the network: "
            f"{peak / 1e6:.0f} MB at most, {count / seconds:.0f} clips/s"
        )


def _compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> None:
    values: list[np.ndarray] = []
    calls = [lambda f=f: values.append(np.asarray(f())) for f in (ours, theirs)]
    fast, slow = map(min, seconds_in_turns(calls, repeats, time.perf_counter))
    difference = np.abs(values[0] - values[1]).max() / np.abs(values[1]).max()
    print(
        f"{name}: {fast * 1e3:.1f} ms against {slow * 1e3:.1f} ms, {slow / fast:.1f} times as "
        f"fast; largest relative difference {difference:.1e}"
    )


def _sqrtm_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    root = np.real(scipy.linalg.sqrtm(cov_a @ cov_b))
    return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root))


def _torchmetrics_ssim(video: torch.Tensor, noisy: torch.Tensor) -> np.ndarray:
    """Its newer versions reflect frames at their borders; we count inner windows only."""
    functional = importlib.import_module("torchmetrics.functional.image")
    x, y = (rearrange((v + 1) / 2, "1 c t h w -> t c h w") for v in (video, noisy))
    _, maps = functional.structural_similarity_index_measure(
        x, y, data_range=1.0, reduction="none", return_full_image=True
    )
    inner = maps[..., 5:-5, 5:-5] if maps.shape[-1] == video.shape[-1] else maps
    return inner.mean(dim=(1, 2, 3)).numpy()[None]


def _skimage_ssim(video: torch.Tensor, noisy: torch.Tensor) -> np.ndarray:
    x, y = (rearrange((v + 1) / 2, "1 c t h w -> t h w c").numpy() for v in (video, noisy))
    return np.array(
        [
            structural_similarity(
                frame,
                other,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=1,
                channel_axis=-1,
            )
            for frame, other in zip(x, y, strict=True)
        ]
    )[None]


if __name__ == "__main__":
    main(EvaluationSpeed, run)
