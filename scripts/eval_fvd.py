"""Fréchet Video Distance between a folder of real and a folder of generated videos."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from common.accelerator import make_accelerator
from common.cli import main
from eval.features.extractors import load_classifier, load_fvd_extractor
from eval.protocols.fvd import evaluate_fvd, fvd_line
from eval.protocols.fvd_config import FVDClips
from eval.protocols.measurement import check_out, give_out
from eval.protocols.named_protocols import DEFAULTS, resolve


@dataclass(frozen=True, kw_only=True)
class EvalFVD(FVDClips):
    """Fréchet Video Distance between a folder of real and a folder of generated videos.

    The defaults are the StyleGAN-V protocol with Latte's strides: 2048 clips of 16 frames, one per
    video, real ones at a random offset and stride 3, generated ones from frame 0 at stride 1.
    `--protocol` takes those of a published score.
    Started by torchrun or accelerate launch, several processes share the work; the result is the
    same to the last bit.
    """

    real: str
    """Folder of real videos, of shards, or of folders of frames."""
    fake: str
    """Folder of generated videos, best lossless (ffv1), of shards, or of folders of frames."""
    weights: str | None = None
    """The network's weights file; null looks at IVVAE_I3D, weights/ and ~/.cache/ivvae/."""
    download: bool = False
    """Fetch I3D's weights into ~/.cache/ivvae/ if they are found nowhere; their hash is checked."""
    allow_unknown_weights: bool = False
    """Take other I3D weights than the published ones; the score is then called fvd_unverified."""
    classifier: str | None = None
    """Folder of a trained classifier to use instead of I3D; the score is named after it."""
    allow_rate_mismatch: bool = False
    """Accept frame rates over strides that differ between the sides."""
    resamples: Annotated[int, Ge(0), Le(100_000)] = 20
    """Bootstrap resamples for the standard deviation; 0 leaves it out."""
    feature_cache: str | None = None
    """Folder that keeps features for the next run; null keeps none."""
    out: str | None = None
    """JSON file for the result; null prints it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier and (self.weights or self.allow_unknown_weights or self.download):
            raise ValueError(
                "classifier replaces I3D: leave out weights, allow_unknown_weights and download"
            )
        preset = resolve(self.given(), self.protocol)["preset"]
        if self.classifier and preset != DEFAULTS["preset"]:
            raise ValueError(
                f"classifier={self.classifier} contradicts preset={preset}"
                f"{f' of protocol={self.protocol}' if self.protocol else ''}. Leave out one of them"
            )


def run(config: EvalFVD) -> None:
    """Check, measure, write."""
    check_out(config.out)
    values = resolve(config.given(), config.protocol)
    accelerator = make_accelerator()
    main_process = accelerator.is_main_process
    with accelerator.local_main_process_first():  # one process downloads
        if config.classifier:
            extractor = load_classifier(config.classifier)
        else:
            extractor = load_fvd_extractor(
                values["preset"],
                config.weights,
                allow_unknown=config.allow_unknown_weights,
                download=config.download,
            )
    result = evaluate_fvd(
        config.real_source(config.real, values, main_process),
        config.fake_source(config.fake, values, main_process),
        extractor,
        protocol=config.protocol,
        data_set=values["data_set"],
        split=values["split"],
        extraction=config.extraction(accelerator, config.feature_cache),
        resamples=config.resamples,
        allow_rate_mismatch=config.allow_rate_mismatch,
    )
    if main_process:
        give_out(result, fvd_line(result), config.out)


if __name__ == "__main__":
    main(EvalFVD, run)
