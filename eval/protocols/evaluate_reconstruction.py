"""Reconstructions of one set of clips by several methods, all measured on the same frames."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from common.perceptual import PerceptualLoss
from data.video.encode import to_uint8, write_video
from eval.clips.labels import read_labels, write_labels
from eval.clips.source import ClipSource
from eval.features.extractors import Extractor, full_precision
from eval.features.feature_cache import finite_features
from eval.metrics.reconstruction import ReconstructionMeter
from eval.protocols.fvd import USUAL_CLIPS, distances, score_name

Reconstruct = Callable[[Float[Tensor, "b 3 t h w"]], Float[Tensor, "b 3 t h w"]]


def evaluate_autoencoders(
    source: ClipSource,
    methods: Mapping[str, Reconstruct],
    *,
    group: int = 4,
    lpips: Sequence[PerceptualLoss] = (),
    extractor: Extractor | None = None,
    batch_size: int = 4,
    workers: int = 0,
    device: str | torch.device = "cpu",
    save: int = 0,
    folder: str | Path = ".",
    frame_rate: float = 8,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Every metric of every method over the clips, in float32 without TF32.

    Args:
        source: the clips, `1 + group * n` frames each.
        methods: name to a function that returns the reconstruction, on any device.
        group: frames per group, for SSIM by position and flicker.
        lpips: networks of LPIPS.
        extractor: network of rFVD, the distance between features of clips and reconstructions,
            pooled over the whole set.
        batch_size: clips at once.
        workers: processes that decode ahead.
        device: where clips, LPIPS and the extractor are.
        save: how many clips to write losslessly into `folder/<method>` and `folder/source`, with a
            samples.json of their labels where these are known.
        folder: see `save`.
        frame_rate: of written clips, Hz, where the source's is not known.
        progress: show a bar.

    Returns:
        Method to what `ReconstructionMeter.compute` gives, and with the networks LPIPS under its
        name (mean over frames, then videos) and `rfvd` (`name`, and what `distances` gives); and
        `by_clip`, `psnr` and `ssim` of each clip in order.

    Raises:
        ValueError: clips, reconstructions or features that cannot be measured.
    """
    meters = {name: ReconstructionMeter(group) for name in methods}
    networks = {name: NetworkMeter(lpips, extractor, device) for name in methods}
    by_clip: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    inputs: list[np.ndarray] = []  # features of the clips themselves
    rate = source.rate or frame_rate
    show = tqdm(total=len(source), desc="reconstruct", unit="clip", disable=not progress)
    with show as bar, torch.inference_mode(), full_precision(torch.device(device)):
        for first, ids, clips in source.batches(batch_size, workers):
            x = clips.to(device)
            results = {"source": x}
            for name, method in methods.items():
                y = method(x).to(device).clamp(-1, 1)
                batch = meters[name].update(x, y)
                rows = zip(*batch.values(), strict=True)
                by_clip[name] += [dict(zip(batch, row, strict=True)) for row in rows]
                networks[name].update(x, y, ids, name)
                results[name] = y
            if extractor:
                inputs.append(finite_features(extractor, x, ids, "source"))
            _save(
                Path(folder),
                first,
                {k: v[: max(0, save - first)] for k, v in results.items()},
                rate,
            )
            bar.update(len(ids))
    if save and (known := read_labels(source.folder)):  # so that eval_is can tell what they show
        files = {f"{i:06d}.mkv": known.labels.get(id) for i, id in enumerate(source.ids[:save])}
        labels = {file: label for file, label in files.items() if label is not None}
        for name in ("source", *methods) if labels else ():
            write_labels(Path(folder) / name, labels, known.class_names)
    scores = {
        name: meter.compute() | networks[name].lpips() | {"by_clip": by_clip[name]}
        for name, meter in meters.items()
    }
    if extractor:
        title = rfvd_name(extractor, len(source), source.protocol.frames)
        real = np.concatenate(inputs)
        for name, score in scores.items():
            score["rfvd"] = {"name": title, **distances(real, networks[name].features())}
    return scores


class NetworkMeter:
    """LPIPS of reconstructions and their features for rFVD, over the batches of a set of clips."""

    def __init__(
        self,
        lpips: Sequence[PerceptualLoss],
        extractor: Extractor | None,
        device: str | torch.device,
    ):
        """The networks are moved to `device`."""
        for network in (*lpips, *([extractor] if extractor else [])):
            network.to(device)
        self._lpips = lpips
        self._extractor = extractor
        self._sums = dict.fromkeys((p.name for p in lpips), 0.0)
        self._clips = 0
        self._features: list[np.ndarray] = []

    def update(
        self,
        video: Float[Tensor, "b 3 t h w"],
        reconstruction: Float[Tensor, "b 3 t h w"],
        ids: list[str],
        where: str | Path,
    ) -> None:
        """Add a batch in [-1, 1], on the networks' device.

        Raises:
            ValueError: features that are not finite; names the clip by `ids` and `where`.
        """
        self._clips += len(video)
        for p in self._lpips:
            self._sums[p.name] += p(video, reconstruction).double().mean(1).sum().item()
        if self._extractor is not None:
            self._features.append(finite_features(self._extractor, reconstruction, ids, where))

    def lpips(self) -> dict[str, float]:
        """Mean over frames, then clips, by the networks' names."""
        return {name: value / self._clips for name, value in self._sums.items()}

    def features(self) -> Float[np.ndarray, "n d"]:
        """Of all reconstructions, in order; needs an extractor."""
        return np.concatenate(self._features)


def rfvd_name(extractor: Extractor, clips: int, frames: int) -> str:
    """Such as `rfvd16_17f`."""
    return "r" + score_name(extractor, clips, frames)


def notes_on(source: ClipSource, extractor: Extractor | None) -> list[str]:
    """What a reader of the scores has to know."""
    if extractor is None or len(source) >= USUAL_CLIPS:
        return []
    return [
        f"rFVD of {len(source)} clips is biased upwards and only compares with scores of as many "
        "clips."
    ]


def _save(folder: Path, first: int, results: Mapping[str, Tensor], rate: float) -> None:
    for name, videos in results.items():
        for i, video in enumerate(videos, first):
            write_video(folder / name / f"{i:06d}.mkv", to_uint8(video.cpu()), rate, codec="ffv1")
