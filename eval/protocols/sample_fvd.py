"""A small-sample FVD while a generator trains: its samples against real clips, always the same."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.config import BatchSize, Config
from data.video.encode import from_uint8, to_uint8, write_video
from engine.train import Preview
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.extractors import load_classifier, load_i3d
from eval.features.feature_cache import Extraction, extract_features, finite_features
from eval.metrics.frechet import frechet_from_features
from eval.protocols.fvd import score_name


@dataclass(frozen=True, kw_only=True)
class SampleScoreConfig(Config):
    """A curve of the Fréchet distance of a few samples. Few samples make it larger than the usual
    FVD, so its name holds their number: only values of one name compare."""

    real: str
    """Folder of the real clips: shards or videos."""
    num_clips: Annotated[int, Ge(2)] = 64
    """Samples, at least 2."""
    num_real_clips: Annotated[int, Ge(2)] = 2048
    """Real clips at most, one per video."""
    batch_size: BatchSize = 8
    """Clips drawn and scored at once."""
    i3d: str | None = None
    """I3D's weights file; null looks at IVVAE_I3D, weights/ and ~/.cache/ivvae/."""
    classifier: str | None = None
    """Folder of a trained classifier to take instead of I3D; the score is named after it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.i3d is not None and self.classifier is not None:
            raise ValueError("fvd: give i3d or classifier, not both")


class SampleScore:
    """The real clips, the network, and the distance of samples to them.

    Args:
        config: how many, of what, by which network.
        clip: frames, stride, height and width of a generated clip, in frames of the real videos.

    Raises:
        ValueError: no real clips, no weights, or clips that the network does not take.
    """

    def __init__(self, config: SampleScoreConfig, clip: tuple[int, int, int, int]):
        frames, stride, height, width = clip
        self.config = config
        if config.classifier is not None:
            self.extractor = load_classifier(config.classifier)
        else:
            self.extractor = load_i3d("i3d_tf", config.i3d)
        if frames < self.extractor.min_frames:
            raise ValueError(
                f"fvd: clips of {frames} frames, but {self.extractor.name} needs at least "
                f"{self.extractor.min_frames}"
            )
        self.real = ClipSource(
            config.real,
            ClipProtocol(
                frames=frames,
                stride=stride,
                num_clips=config.num_real_clips,
                height=height,
                width=width,
            ),
        )
        self.name = score_name(self.extractor, config.num_clips, frames)
        self._features: np.ndarray | None = None  # of the real clips

    def prepare(self, device: torch.device, cache: Path) -> None:
        """Describe the real clips, in all processes together, or read what `cache` has of them."""
        how = Extraction(batch_size=self.config.batch_size, device=device, cache=cache)
        self._features = extract_features(self.real, self.extractor, how).values

    def score(self, draw: Callable[[range], Float[Tensor, "b 3 t h w"]]) -> dict[str, float]:
        """The distance, under a name such as fvd64_17f; after `prepare`.

        Args:
            draw: samples of these numbers, in [-1, 1]. They are rounded to 8 bits, as files are.

        Raises:
            ValueError: a sample that is not finite.
        """
        assert self._features is not None, "prepare first"
        size, count = self.config.batch_size, self.config.num_clips
        parts = []
        for first in range(0, count, size):
            numbers = range(first, min(first + size, count))
            clips = draw(numbers)
            if not clips.isfinite().all():
                raise ValueError("samples have values that are not finite")
            self.extractor.to(clips.device)
            stored = torch.stack([from_uint8(to_uint8(clip.cpu())) for clip in clips])
            ids = [f"sample {i}" for i in numbers]
            parts.append(finite_features(self.extractor, stored.to(clips.device), ids, "samples"))
        return {self.name: frechet_from_features(self._features, np.concatenate(parts))}


def preview_of(
    draw: Callable[[nn.Module, range], Float[Tensor, "b 3 t h w"]], count: int, frame_rate: float
) -> Preview:
    """What shows the first samples side by side: above by the averaged weights, below by the raw
    ones.

    Args:
        draw: samples of a model by their numbers, in [-1, 1].
        frame_rate: Hz.
    """

    def write(averaged: nn.Module, raw: nn.Module, step: int, file: Path) -> None:
        clips = [draw(model, range(count)).cpu() for model in (averaged, raw)]
        frames = rearrange(clips, "j i c t h w -> c t (j h) (i w)")
        write_video(file, to_uint8(frames), frame_rate)

    return write
