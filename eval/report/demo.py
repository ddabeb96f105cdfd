"""Scores of the demo: Fréchet distance and Inception Score in the features of its own classifier.

They are called `fvd_demo` and `is_demo` because they are neither FVD nor IS: those need I3D and
C3D. They mean something only beside each other: the same number of clips, the same reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from common.files import read_json, write_json
from common.seeding import generator
from data.shards.index import ShardIndex
from data.video.decode import read_frames
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.classifier import ClipClassifier
from eval.metrics.frechet import frechet_from_features
from eval.metrics.inception_score import inception_score

FRAMES = 16
NOISE = 0.6


@dataclass(frozen=True)
class DemoSet:
    """One set of clips to score."""

    source: ClipSource
    """Where the clips come from."""
    labels: Mapping[str, int]
    """The class that each clip shows, or was asked to show, by id."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the pixels, in [-1, 1] units."""


def demo_scores(
    classifier: ClipClassifier, reference: DemoSet, sets: Mapping[str, DemoSet]
) -> dict[str, dict[str, Any]]:
    """Score each set against the reference.

    Returns:
        For each set `fvd_demo` (lower is better), `is_demo` (higher is better, at most the number
        of classes), `recognised`, the share of clips that the classifier takes for their class, and
        `clips`. All sets are scored on equally many clips, those of the smallest.
    """
    count = min(len(s.source) for s in sets.values())
    wanted = _describe(classifier, reference, len(reference.source))[0]
    scores = {}
    for name, clips in sets.items():
        features, probabilities, hits = _describe(classifier, clips, count)
        scores[name] = {
            "fvd_demo": frechet_from_features(wanted, features),
            "is_demo": inception_score(probabilities, splits=1).mean,
            "recognised": float(np.mean(hits)),
            "clips": count,
        }
    return scores


@torch.inference_mode()
def _describe(
    classifier: ClipClassifier, clips: DemoSet, count: int
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n k"], Sequence[bool]]:
    """Features, class probabilities, and whether the class was recognised, of the first clips."""
    features, probabilities, hits = [], [], []
    for i in range(count):
        key, video = clips.source[i]
        draw = torch.randn(video.shape, generator=generator(0, "demo noise", key))
        x = (video + clips.noise * draw).clamp(-1, 1)[None].to(classifier.head.weight.device)
        feature = classifier.features(x)
        probability = classifier.head(feature).softmax(dim=1)
        features.append(feature[0].double().cpu().numpy())
        probabilities.append(probability[0].double().cpu().numpy())
        hits.append(int(probability.argmax()) == clips.labels[key])
    return np.stack(features), np.stack(probabilities), hits


def evaluate_demo(folder: Path) -> dict[str, Any]:
    """Score a demo run's samples beside held-out, noisy and untrained clips; writes scores.json.

    `folder` holds `classifier`, `shards/{train,test}`, `reconstruction`, `samples` and
    `samples_untrained`.
    """
    classifier = ClipClassifier.from_pretrained(folder / "classifier" / "export")
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    samples = read_json(folder / "samples" / "samples.json")
    protocol = demo_protocol(folder / "samples" / samples["clips"][0]["file"])
    held_out = packed_set(folder / "shards" / "test", protocol)
    sets = {
        "held-out clips": held_out,
        "held-out clips through the VAE": _reconstructed(folder, held_out.labels, protocol),
        "generated": generated_set(folder / "samples", protocol),
        "held-out clips with noise": replace(held_out, noise=NOISE),
        "untrained generator": generated_set(folder / "samples_untrained", protocol),
    }
    reference = packed_set(folder / "shards" / "train", protocol)
    result = {
        "scores": demo_scores(classifier, reference, sets),
        "protocol": {
            "frames": FRAMES,
            "noise": NOISE,
            "reference": "training clips",
            "reference_clips": len(reference.source),
            "classes": classifier.config.num_classes,
            "classifier": read_json(folder / "classifier" / "metrics.json")["test"],
        },
    }
    write_json(folder / "scores.json", result)
    return result


def demo_protocol(clip: Path) -> ClipProtocol:
    """Which part of each clip is scored: the middle, at the size of the generated `clip`."""
    first = read_frames(clip, [0])
    return ClipProtocol(
        frames=FRAMES, start="center", num_clips=None, height=first.shape[1], width=first.shape[2]
    )


def packed_set(folder: Path, protocol: ClipProtocol) -> DemoSet:
    """The clips of shards, each showing its label."""
    labels = {sample.key: sample.label for sample in ShardIndex.load(folder).samples}
    known = {key: label for key, label in labels.items() if label is not None}
    return DemoSet(ClipSource(folder, protocol), known)


def generated_set(folder: Path, protocol: ClipProtocol) -> DemoSet:
    """The clips of scripts/sample.py, each asked to show its label."""
    clips = read_json(folder / "samples.json")["clips"]
    source = ClipSource(folder, protocol, generated=True)
    return DemoSet(source, {clip["file"]: clip["label"] for clip in clips})


def _reconstructed(folder: Path, labels: Mapping[str, int], protocol: ClipProtocol) -> DemoSet:
    clips = read_json(folder / "reconstruction" / "metrics.json")["clips"]
    source = ClipSource(folder / "reconstruction" / "vae", protocol, generated=True)
    return DemoSet(source, {f"{clip['name']}.mkv": labels[clip["key"]] for clip in clips})
