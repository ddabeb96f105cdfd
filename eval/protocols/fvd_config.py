"""Which clips an FVD compares, and by which network, as far as a named protocol leaves it open."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from annotated_types import Ge

from common.config import Frames
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.extractors import Extractor, FVDPreset, load_classifier, load_fvd_extractor
from eval.features.feature_cache import Extraction, FeatureSet, extract_features
from eval.features.statistics import FILES, Statistics, load_statistics
from eval.protocols.fvd import DISTANCES
from eval.protocols.measurement import GenerationScore
from eval.published.named_protocols import DEFAULTS, resolve

Start = Literal["random", "first", "center"]


@dataclass(frozen=True, kw_only=True)
class FVDConfig(GenerationScore):
    """Clips and network; null takes what the protocol has, or else the default named below."""

    protocol: str | None = None
    """A published protocol, which fixes the fields below as far as they are known: latte_ucf101,
    latte_sky, latte_faceforensics, stylegan_v, ivvae_table2, tats, larp_128, cdfvd_16f_128,
    far_ucf101. A flag that contradicts it is refused."""
    data_set: str | None = None
    """What `real` is, as papers call it: UCF-101, SkyTimelapse, FaceForensics, ... The result then
    says which published scores compare."""
    split: str | None = None
    """Which videos `real` holds, such as train; recorded in the result."""
    frames: Frames | None = None
    """Frames per clip; null: 16."""
    stride_real: Frames | None = None
    """Frames from one real clip frame to the next: the stride the generator was trained with; null:
    3."""
    stride_fake: Frames | None = None
    """The same for generated videos; null: 1."""
    start_real: Start | None = None
    """Where clips begin in real videos; null: random."""
    start_fake: Start | None = None
    """Where clips begin in generated videos; null: first."""
    skip_fake: Annotated[int, Ge(0)] | None = None
    """Frames left out at the start of generated videos; 17 frames give 16 with 0 (null) or 1."""
    num_clips: Annotated[int, Ge(2)] | Literal["all"] | None = None
    """Most clips per side, one per video; null: 2048."""
    num_clips_real: Annotated[int, Ge(2)] | Literal["same", "all"] | None = None
    """Most real clips; same (null) takes as many as of generated ones, which most published
    protocols do."""
    preset: FVDPreset | None = None
    """Which implementation of I3D the features are those of; null: i3d_tf. videomae gives
    content-debiased FVD under a name of its own, vjepa gives JEDi."""
    weights: str | None = None
    """The network's weights file; null looks at IVVAE_I3D, weights/ and ~/.cache/ivvae/."""
    download: bool = False
    """Fetch I3D's weights into ~/.cache/ivvae/ if they are found nowhere; their hash is checked."""
    allow_unknown_weights: bool = False
    """Take other I3D weights than the published ones; the score is then called fvd_unverified."""
    classifier: str | None = None
    """Folder of a trained classifier to use instead of I3D; the score is named after it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        preset = resolve(self.given(), self.protocol)["preset"]  # or a contradiction is refused
        if self.classifier and preset != DEFAULTS["preset"]:
            whose = f" of protocol={self.protocol}" if self.protocol else ""
            raise ValueError(
                f"classifier={self.classifier} contradicts preset={preset}{whose}. Leave out one "
                "of them"
            )
        if self.classifier and (self.weights or self.allow_unknown_weights or self.download):
            raise ValueError(
                "classifier replaces I3D: leave out weights, allow_unknown_weights and download"
            )

    def given(self) -> dict[str, Any]:
        """The fields of `DEFAULTS`; None where nothing was given."""
        return {field: getattr(self, field) for field in DEFAULTS}

    def real_clips(
        self, path: str, progress: bool
    ) -> tuple[ClipSource | Statistics, dict[str, Any]]:
        """The real clips of a folder, or their statistics in a file; and every field of `DEFAULTS`.

        Args:
            path: folder of videos or shards, or file of statistics.
            progress: show a bar.

        Raises:
            ValueError: no such path; or statistics of another protocol, naming both.
        """
        if Path(path).suffix not in FILES or Path(path).is_dir():
            values = resolve(self.given(), self.protocol)
            return self.source("real", path, values, progress), values
        found = load_statistics(path)
        if self.num_clips_real not in (None, "same", "all", len(found)):
            raise ValueError(
                f"{path}: statistics of {len(found)} clips, but "
                f"num_clips_real={self.num_clips_real}"
            )
        stored = dict(found.values)
        if self.classifier or stored["preset"] not in get_args(FVDPreset):
            preset = stored.pop("preset")
            if not self.classifier:
                raise ValueError(f"{path}: made with the classifier {preset}; give --classifier")
        return found, resolve(self.given(), self.protocol, stored, path)

    def source(
        self, side: Literal["real", "fake"], folder: str, values: Mapping[str, Any], progress: bool
    ) -> ClipSource:
        """Real clips, or generated ones and what stands in for them.

        Args:
            side: which.
            folder: of videos or shards.
            values: what `resolve` gives.
            progress: show a bar.
        """
        is_fake, number = side == "fake", values["num_clips"]
        if not is_fake and values["num_clips_real"] != "same":
            number = values["num_clips_real"]
        protocol = ClipProtocol(
            frames=values["frames"],
            stride=values[f"stride_{side}"],
            start=values[f"start_{side}"],
            skip=values["skip_fake"] if is_fake else 0,
            num_clips=None if number == "all" else number,
            seed=self.seed,
            height=values["height"],
            width=values["width"],
            noise=self.noise_fake if is_fake else 0.0,
        )
        return ClipSource(
            folder,
            protocol,
            generated=is_fake and not self.fake_is_real,
            on_error=self.on_error,
            progress=progress,
        )

    def load_network(self, preset: FVDPreset) -> Extractor:
        """The classifier where one is given, else the network of a preset."""
        if self.classifier:
            return load_classifier(self.classifier)
        return load_fvd_extractor(
            preset, self.weights, allow_unknown=self.allow_unknown_weights, download=self.download
        )


def real_floor(
    real: ClipSource | Statistics,
    features: FeatureSet | None,
    extractor: Extractor,
    extraction: Extraction,
) -> dict[str, Any]:
    """The distance of real clips from other real clips: what a perfect generator would get.

    Of a folder, from as many videos again as are in the reference, where it has them; otherwise,
    and of statistics, half against half of the clips, whose bias is that of half as many.

    Returns:
        `value`, `clips` (per half), ready for JSON.

    Raises:
        ValueError: too few clips for two halves, or only mean and covariance.
    """
    if features is None:
        raise ValueError(f"{real.folder}: only mean and covariance, so its clips cannot be halved")
    values = features.values
    if isinstance(real, ClipSource):
        wanted = replace(real.protocol, num_clips=2 * len(real))
        twice = ClipSource(real.folder, wanted, on_error=real.on_error, progress=False)
        if len(twice) > len(real):  # they begin with those of `real`
            others = extract_features(twice.beyond(len(real)), extractor, extraction)
            values = np.concatenate([values, others.values])
    clips = min(len(real), len(values) // 2)
    if clips < 2:
        raise ValueError(f"{real.folder}: {len(values)} clips have no two halves of 2 or more")
    halves = values[:clips], values[clips : 2 * clips]
    return {"value": DISTANCES[extractor.distance](*halves), "clips": clips}
