"""Whether generated clips are copies of training clips: by features, and by pixels too."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.machine import one_thread
from eval.clips.source import ClipSource
from eval.features.extractors import Extractor
from eval.features.feature_cache import Extraction, FeatureSet, extract_features, finite_features
from eval.metrics.neighbors import memorization, nearest_clips

WORST = 8  # pairs that are named
STRETCH = 256  # frames of a video that are decoded at once


def memorized_clips(
    fake: ClipSource,
    training: FeatureSet | None,
    held_out: ClipSource,
    extractor: Extractor,
    extraction: Extraction,
    *,
    among: tuple[ClipSource, int] | None = None,
) -> dict[str, Any]:
    """Share of generated clips nearer to a training clip than 5 % of held-out clips are.

    Args:
        fake: generated clips.
        training: features of the clips that were trained on.
        held_out: real clips of other videos, cut as the training clips are.
        among: training clips and a stride, for `nearest_training_clips`; None: not.

    Returns:
        `share`, `level`, `threshold`, `clips_held_out`, and `worst`: the nearest pairs with
        `generated`, `training` (ids) and `distance`; with `among`, `nearest`. Ready for JSON.

    Raises:
        ValueError: fewer than 20 held-out clips, or no features of the training clips.
    """
    if training is None:
        raise ValueError(
            "memorization requires features of the real clips, not only mean and covariance"
        )
    generated = extract_features(fake, extractor, extraction)
    usual = extract_features(held_out, extractor, extraction)
    found = memorization(generated.values, training.values, usual.values)
    worst = [
        {
            "generated": generated.ids[i],
            "training": training.ids[found.nearest.indices[i]],
            "distance": float(found.nearest.distances[i]),
        }
        for i in found.worst[:WORST]
    ]
    result = {
        "share": found.share,
        "level": found.level,
        "threshold": found.threshold,
        "clips_held_out": len(usual.ids),
        "worst": worst,
    }
    if among:
        clips = {"generated": (fake, generated), "held_out": (held_out, usual)}
        result["nearest"] = nearest_training_clips(clips, *among, extractor, extraction)
    return result


def nearest_training_clips(
    clips: Mapping[str, tuple[ClipSource, FeatureSet]],
    training: ClipSource,
    stride: int,
    extractor: Extractor,
    extraction: Extraction,
) -> dict[str, Any]:
    """The training clip nearest to each of several sets' clips.

    Unlike a distance, which takes one clip of each video, this looks at every part of the training
    videos. All clips of the sets are held in memory.

    Args:
        clips: the sets to look up by name, each with its features.
        training: the protocol of the clips to look among.
        stride: video frames from the start of one of these to that of the next.

    Returns:
        `stride`, `clips` (looked among), and for each name in `clips`: `source`,
        `median_distance`, `median_gray_levels` and `pairs`, one per clip with `clip` and `start`,
        `distance` to the nearest clip by features, which is `by_features` (id and first frame), and
        `gray_levels` to the nearest by pixels, which is `by_pixels`: the root mean square
        difference, 0..255. Ready for JSON.

    Raises:
        ValueError: features that are not finite.
    """
    queries = torch.cat([_pixels(torch.stack([c for _, c in s])) for s, _ in clips.values()])
    gray_levels = torch.full((len(queries),), torch.inf)
    by_pixels = torch.zeros(len(queries), dtype=torch.long)
    names: list[list[Any]] = []  # id and first frame of every training clip
    features: list[np.ndarray] = []

    # Nearest by pixels: batch by batch, because training clips may be many
    stretches = DataLoader(
        Stretches(training, stride),
        batch_size=None,
        num_workers=extraction.workers,
        worker_init_fn=one_thread,
        generator=torch.Generator(),
    )
    for id, starts, frames, places in stretches:
        for rows in torch.arange(len(starts)).split(extraction.batch_size):
            batch = rearrange(frames[:, places[rows]], "c b t h w -> b c t h w")
            ids = [id] * len(batch)
            features.append(
                finite_features(extractor, batch.to(extraction.device), ids, training.folder)
            )
            pixels = _pixels(batch)
            gaps = torch.cdist(queries, pixels, compute_mode="donot_use_mm_for_euclid_dist")
            found = (gaps / pixels.shape[1] ** 0.5).min(dim=1)
            nearer = found.values < gray_levels
            by_pixels = torch.where(nearer, len(names) + found.indices, by_pixels)
            gray_levels = torch.where(nearer, found.values, gray_levels)
            names += [[id, starts[row]] for row in rows]

    # Nearest by features, and what was found
    result: dict[str, Any] = {"stride": stride, "clips": len(names)}
    begin = 0
    among = np.concatenate(features)
    for name, (source, found_features) in clips.items():
        near = nearest_clips(found_features.values, among)
        levels = gray_levels[begin : begin + len(source)].tolist()
        result[name] = {
            "source": source.describe(),
            "median_distance": float(np.median(near.distances)),
            "median_gray_levels": float(np.median(levels)),
            "pairs": [
                {
                    "clip": source.ids[i],
                    "start": source.starts[i],
                    "distance": float(near.distances[i]),
                    "by_features": names[near.indices[i]],
                    "gray_levels": levels[i],
                    "by_pixels": names[int(by_pixels[begin + i])],
                }
                for i in range(len(source))
            ],
        }
        begin += len(source)
    return result


class Stretches(Dataset):
    """All clips of a source's videos that begin `stride` frames apart, in stretches of the videos.

    Each stretch is decoded once for all clips in it: the id of its video, where the clips begin,
    the frames `c t h w`, and the places `b t` of each clip's frames among them. With
    `on_error="skip"` one that cannot be read gives no clips.
    """

    def __init__(self, source: ClipSource, stride: int):
        self.source = source
        protocol = source.protocol
        clip = protocol.span - protocol.skip
        at_once = max(1, 1 + (STRETCH - clip) // stride)
        self.parts: list[tuple[int, range]] = []  # of each stretch the clip's number, and starts
        for index in range(len(source)):
            last = source.num_frames(index) - clip
            starts = range(protocol.skip, last + 1, stride)
            self.parts += [
                (index, starts[first : first + at_once]) for first in range(0, len(starts), at_once)
            ]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, item: int) -> tuple[str, list[int], Tensor, Tensor]:
        index, starts = self.parts[item]
        id, clips = self.source.ids[index], [self.source.protocol.indices(s) for s in starts]
        numbers, places = np.unique(clips, return_inverse=True)
        try:
            frames = self.source.frames(index, numbers.tolist())
        except ValueError:
            if self.source.on_error == "stop":
                raise
            return id, [], torch.empty(0), torch.empty(0)
        return id, [*starts], frames, torch.from_numpy(places.reshape(len(clips), -1))


def _pixels(clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d"]:
    return clips.add(1).mul(127.5).flatten(1)  # gray levels
