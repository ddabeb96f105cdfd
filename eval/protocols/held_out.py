"""Held-out clips while a video VAE trains: scores of its reconstructions, and pictures of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from common.pixels import to_float
from data.clips.dataset import ClipConfig, ClipDataset
from data.video.encode import to_uint8, write_video
from engine.train import Evaluate, Preview
from engine.watch import show_pictures
from eval.features.extractors import full_precision
from eval.features.feature_cache import finite_features
from eval.features.metric_networks import NetworkConfig
from eval.metrics.frechet import frechet_from_features
from eval.metrics.reconstruction import psnr, ssim, ssim_by_position
from eval.protocols.evaluate_reconstruction import NetworkMeter, Reconstruct

log = logging.getLogger(__name__)


class HeldOut:
    """The first clips of a packed data set, always the same ones, and what scores them."""

    def __init__(self, clips: ClipDataset, count: int, group: int, networks: NetworkConfig):
        """Loads the networks, and logs in one line which are left out and why.

        Args:
            clips: without random choices.
            count: most clips to score.
            group: frames per group of the VAE; 1 for an image VAE.
        Raises:
            ValueError: a network that is asked for by name has no weights or takes no such clips.
        """
        size = clips.config
        self.clips = clips
        self.count = min(count, len(clips))
        self.group = group
        self.networks = networks.load(self.count, size.frames, size.height, size.width)
        self._features: np.ndarray | None = None  # of the clips themselves
        if self.networks.missing:
            log.info(
                "held-out clips are scored without %s; asking for one by name tells more",
                ", ".join(f"{name} ({why})" for name, why in self.networks.missing.items()),
            )

    def clip(self, index: int, device: torch.device) -> Float[Tensor, "1 3 t h w"]:
        """One of the clips."""
        return to_float(self.clips[(0, index)]["video"][None].to(device))

    def evaluate_on(self, device: torch.device) -> Evaluate:
        """What the trainer calls with a model that has `reconstruct`."""
        return lambda model: self.scores(model.reconstruct, device)  # type: ignore[arg-type]

    def scores(self, reconstruct: Reconstruct, device: torch.device) -> dict[str, float]:
        """Means over frames and clips of everything that can be measured, in float32 without TF32.

        Returns: "psnr" (dB) and "ssim"; "ssim_1" to "ssim_t" (at each position of a frame group)
            and "ssim_margin" (their largest difference; supplement, Table 5) where a clip has
            groups; "lpips_alex" and "lpips_vgg", and rFVD under its name with clips and frames,
            such as "rfvd16_17f", as far as there are networks.
        Raises:
            ValueError: a reconstruction without finite values.
        """
        meter = NetworkMeter(self.networks, device)
        frames: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
        with full_precision(device):
            for i in range(self.count):
                video = self.clip(i, device)
                reconstruction = reconstruct(video)
                frames["psnr"].append(psnr(video, reconstruction))
                frames["ssim"].append(ssim(video, reconstruction))
                meter.update(video, reconstruction.clamp(-1, 1), *self._named(i))
            rfvd = self._rfvd(meter, device)
        rows = {name: torch.cat(parts) for name, parts in frames.items()}  # clips t
        means = {name: row.mean().item() for name, row in rows.items()}
        return {**means, **meter.lpips(), **self._by_position(rows["ssim"]), **rfvd}

    def _by_position(self, similarity: Tensor) -> dict[str, float]:
        if self.group == 1 or similarity.shape[1] == 1:
            return {}
        positions, margin = ssim_by_position(similarity, self.group)
        values = {f"ssim_{i}": value for i, value in enumerate(positions, start=1)}
        return {**values, "ssim_margin": margin}

    def _rfvd(self, meter: NetworkMeter, device: torch.device) -> dict[str, float]:
        extractor = self.networks.extractor
        if extractor is None:
            return {}
        if self._features is None:
            parts = [
                finite_features(extractor, self.clip(i, device), *self._named(i))
                for i in range(self.count)
            ]
            self._features = np.concatenate(parts)
        name = meter.rfvd_name(self.clips.config.frames)
        return {name: frechet_from_features(self._features, meter.features())}

    def _named(self, index: int) -> tuple[list[str], str]:
        """Id of a clip and where it is from, for errors."""
        return [self.clips.key(index)], self.clips.config.folder


def fixed_clips(config: ClipConfig) -> ClipDataset:
    """The clips of a packed data set without random choices: the middle of every video."""
    fixed = replace(config, start="center", crop="center", max_zoom=1.0, flip=False)
    return ClipDataset(fixed, seed=0)


def preview_of(
    clips: ClipDataset,
    count: int,
    show: Callable[[nn.Module, Float[Tensor, "1 3 t h w"]], Sequence[Float[Tensor, "1 3 t h w"]]],
    accelerator: Accelerator,
) -> Preview:
    """What shows the first clips side by side, in a file and where the log goes.

    Args:
        show: versions of a clip by the model, of one size; they stand below each other.
    """

    def write(model: nn.Module, raw: nn.Module, step: int, file: Path) -> None:
        columns = []
        for i in range(min(count, len(clips))):
            rows = show(model, to_float(clips[(0, i)]["video"][None].to(accelerator.device)))
            columns.append(torch.cat(list(rows), dim=3)[0].clamp(-1, 1).cpu())  # 3 t (rows h) w
        frames = to_uint8(torch.cat(columns, dim=3))
        write_video(file, frames, clips.frame_rate)
        show_pictures(accelerator, "preview", frames[:: max(1, len(frames) - 1)], step)

    return write
