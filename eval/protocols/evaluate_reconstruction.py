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
from eval.clips.labels import Labels, read_labels, write_labels
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
    for network in (*lpips, *([extractor] if extractor else [])):
        network.to(device)
    meters = {name: ReconstructionMeter(group) for name in methods}
    perceived = {name: dict.fromkeys((p.name for p in lpips), 0.0) for name in methods}
    by_clip: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    features: dict[str, list[np.ndarray]] = {name: [] for name in ("source", *methods)}
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
                for p in lpips:
                    perceived[name][p.name] += p(x, y).double().mean(1).sum().item()
                results[name] = y
            for name, video in results.items() if extractor else ():
                assert extractor is not None
                features[name].append(finite_features(extractor, video, ids, name))
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
            write_labels(Path(folder) / name, Labels(labels, known.class_names))
    scores = {
        name: meters[name].compute()
        | {k: v / len(source) for k, v in perceived[name].items()}
        | {"by_clip": by_clip[name]}
        for name in methods
    }
    if extractor:
        inputs = np.concatenate(features["source"])
        for name, score in scores.items():
            score["rfvd"] = {
                "name": "r" + score_name(extractor, len(source), source.protocol.frames),
                **distances(inputs, np.concatenate(features[name])),
            }
    return scores


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
