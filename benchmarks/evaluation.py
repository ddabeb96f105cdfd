"""Evaluation against its usual implementations: equal results, and the ratio of times in one run.

Fréchet distance at 400 dimensions against the route through `scipy.linalg.sqrtm`, and SSIM of a
video against scikit-image frame by frame.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from einops import rearrange
from skimage.metrics import structural_similarity

from engine.cli import main
from eval.frechet import frechet_distance, moments
from eval.reconstruction import ssim


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare the evaluation's numerics and speed with scipy and scikit-image."""

    dimensions: int = 400
    """Of the features."""
    clips: int = 2048
    """Feature vectors per set."""
    frames: int = 17
    """Of the video for SSIM."""
    size: int = 256
    """Height and width of the video, pixels."""
    repeats: int = 5
    """Runs of each; the fastest counts."""
    threads: int = 1
    """Of torch and BLAS where it follows torch."""


def run(config: Config) -> None:
    """Print one line per comparison."""
    torch.set_num_threads(config.threads)
    rng = np.random.default_rng(0)
    shape = (config.clips, config.dimensions)
    a, b = moments(rng.normal(size=shape)), moments(1.3 * rng.normal(size=shape) + 0.2)
    _compare(
        f"Fréchet distance, {config.dimensions} dimensions, against scipy.linalg.sqrtm",
        lambda: frechet_distance(*a, *b),
        lambda: _sqrtm_distance(*a, *b),
        config.repeats,
    )
    frames = (1, 3, config.frames, config.size, config.size)
    video = torch.from_numpy(rng.uniform(-1, 1, frames))
    noisy = (video + 0.1 * torch.from_numpy(rng.normal(size=frames))).clamp(-1, 1)
    _compare(
        f"SSIM, {config.frames}x{config.size}x{config.size}, against scikit-image",
        lambda: ssim(video, noisy).numpy(),
        lambda: _skimage_ssim(video, noisy),
        config.repeats,
    )


def _compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> None:
    difference = np.abs(np.asarray(ours()) - np.asarray(theirs())).max()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):  # in turns, so that both meet the same load
        for function, row in zip((ours, theirs), seconds, strict=True):
            started = time.perf_counter()
            function()
            row.append(time.perf_counter() - started)
    fast, slow = (min(row) for row in seconds)
    print(
        f"{name}: {fast * 1e3:.1f} ms against {slow * 1e3:.1f} ms, {slow / fast:.1f} times as "
        f"fast; largest difference {difference:.1e}"
    )


def _sqrtm_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    root = np.real(scipy.linalg.sqrtm(cov_a @ cov_b))
    return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root))


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
    main(Config, run)
