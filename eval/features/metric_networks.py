"""The networks of LPIPS and rFVD that score reconstructions, as far as their weights are here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from common.config import Config
from common.perceptual import Backbone, PerceptualLoss, check_size, load_lpips
from eval.features.extractors import Extractor, load_classifier, load_i3d
from eval.features.i3d import MIN_FRAMES

Network = TypeVar("Network")


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
        for backbone in ("alex", "vgg"):
            if self.lpips in ("auto", "both", backbone):
                must = self.download or self.lpips != "auto" or self._path(backbone) is not None
                network = found.attempt(
                    f"LPIPS with {backbone}",
                    lambda name=backbone: self._lpips(name, height, width),
                    must=must,
                )
                found.lpips += [network] if network else []
        if self.classifier is not None or self.rfvd != "none":
            by_name = self.rfvd == "i3d" or (self.i3d or self.classifier) is not None
            must = self.download or by_name
            found.extractor = found.attempt(
                "rFVD", lambda: self._extractor(clips, frames), must=must
            )
        return found

    def _path(self, backbone: Backbone) -> str | None:
        return self.lpips_alex if backbone == "alex" else self.lpips_vgg

    def _lpips(self, backbone: Backbone, height: int, width: int) -> PerceptualLoss:
        check_size(backbone, height, width)
        return load_lpips(backbone, self._path(backbone), download=self.download)

    def _extractor(self, clips: int, frames: int) -> Extractor:
        if clips < 2:
            raise ValueError(f"{clips} clip, but a distance between sets needs at least 2")
        if self.classifier is not None:
            return load_classifier(self.classifier)
        if frames < MIN_FRAMES:
            raise ValueError(f"clips of {frames} frames, but I3D needs {MIN_FRAMES}")
        return load_i3d("i3d_tf", self.i3d, download=self.download)


@dataclass
class Networks:
    """What was found."""

    lpips: list[PerceptualLoss] = field(default_factory=list)
    """Networks of LPIPS."""
    extractor: Extractor | None = None
    """Network of rFVD."""
    missing: dict[str, str] = field(default_factory=dict)
    """What was not found, and the reason in short; who asks for it by name is told in full."""

    def attempt(self, name: str, load: Callable[[], Network], *, must: bool) -> Network | None:
        """`load()`; if it refuses, None and the reason in `missing`, unless it `must` not."""
        try:
            return load()
        except ValueError as error:
            if must:
                raise
            self.missing[name] = str(error).partition(". ")[0]
            return None
