"""The networks of LPIPS and rFVD that score reconstructions, as far as their weights are here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from common.config import Config
from common.perceptual import Backbone, PerceptualLoss, check_size, load_lpips
from eval.features.extractors import Extractor, load_classifier, load_i3d
from eval.features.feature_cache import finite_features
from eval.features.i3d import MIN_FRAMES


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Config):
    """Which networks score reconstructions besides PSNR and SSIM, and where their weights are."""

    lpips: Literal["auto", "both", "alex", "vgg", "none"] = "auto"
    """Networks of LPIPS; auto takes those whose weights are found."""
    lpips_alex: str | None = None
    """AlexNet's weights file; null looks at IVVAE_ALEXNET, weights/, ~/.cache/ivvae/, torch hub."""
    lpips_vgg: str | None = None
    """VGG-16's weights file; null looks at IVVAE_VGG16 and the same folders."""
    rfvd: Literal["auto", "i3d", "none"] = "auto"
    """I3D for rFVD; auto takes it if its weights are found."""
    i3d: str | None = None
    """I3D's weights file; null looks at IVVAE_I3D, weights/ and ~/.cache/ivvae/."""
    classifier: str | None = None
    """Folder of a trained classifier for rFVD instead of I3D; the score is named after it."""
    download: bool = False
    """Fetch weights of LPIPS and I3D that are found nowhere; their hashes are checked."""

    def load(self, clips: int, frames: int, height: int, width: int) -> "Networks":
        """Load the networks that take `clips` clips of this size.

        Raises:
            ValueError: what is asked for by name has no weights, or does not take such clips.
        """
        found = Networks()
        files: dict[Backbone, str | None] = {"alex": self.lpips_alex, "vgg": self.lpips_vgg}
        for backbone, file in files.items():
            if self.lpips in ("auto", "both", backbone):
                must = self.download or self.lpips != "auto" or file is not None
                with found.attempt(f"LPIPS with {backbone}", must=must):
                    check_size(backbone, height, width)
                    found.lpips += [load_lpips(backbone, file, download=self.download)]
        if self.classifier is not None or self.rfvd != "none":
            by_name = self.rfvd == "i3d" or (self.i3d or self.classifier) is not None
            with found.attempt("rFVD", must=self.download or by_name):
                if clips < 2:
                    raise ValueError(f"{clips} clip, but a distance between sets needs at least 2")
                if self.classifier is not None:
                    found.extractor = load_classifier(self.classifier)
                elif frames < MIN_FRAMES:
                    raise ValueError(f"clips of {frames} frames, but I3D needs {MIN_FRAMES}")
                else:
                    found.extractor = load_i3d("i3d_tf", self.i3d, download=self.download)
        return found


@dataclass
class Networks:
    """What was found, and what it says of batches in [-1, 1] on the networks' device."""

    lpips: list[PerceptualLoss] = field(default_factory=list)
    """Networks of LPIPS."""
    extractor: Extractor | None = None
    """Network of rFVD."""
    missing: dict[str, str] = field(default_factory=dict)
    """What was not found, and the reason in short; who asks for it by name is told in full."""

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        for network in self.lpips:
            network.to(device)
        if self.extractor is not None:
            self.extractor.to(device)

    def lpips_by_clip(
        self, video: Float[Tensor, "b 3 t h w"], reconstruction: Float[Tensor, "b 3 t h w"]
    ) -> dict[str, list[float]]:
        """Mean over the frames of each clip, by the networks' names."""
        return {p.name: p(video, reconstruction).double().mean(1).tolist() for p in self.lpips}

    def features(
        self, clips: Float[Tensor, "b 3 t h w"], ids: list[str], where: str | Path
    ) -> Float32[np.ndarray, "b d"]:
        """For rFVD; of no dimensions without an extractor.

        Raises:
            ValueError: features that are not finite; names the clip by `ids` and `where`.
        """
        if self.extractor is None:
            return np.empty((len(clips), 0), np.float32)
        return finite_features(self.extractor, clips, ids, where)

    @contextmanager
    def attempt(self, name: str, *, must: bool) -> Iterator[None]:
        """Within, what refuses goes into `missing` with its reason, unless it `must` not."""
        try:
            yield
        except ValueError as error:
            if must:
                raise
            self.missing[name] = str(error).partition(". ")[0]


def mean_lpips(batches: Sequence[Mapping[str, list[float]]]) -> dict[str, float]:
    """Means over all clips of what `lpips_by_clip` gave of each batch."""
    return {
        name: float(np.mean([value for batch in batches for value in batch[name]]))
        for name in batches[0]
    }
