"""Fréchet Video Distance between a folder of real and a folder of generated videos."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge

from common.accelerator import make_accelerator
from common.cli import main
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.extractors import FVDPreset, load_classifier, load_fvd_extractor
from eval.protocols.fvd import evaluate_fvd, fvd_line
from eval.protocols.measurement import Measurement, check_out, give_out


@dataclass(frozen=True, kw_only=True)
class EvalFVD(Measurement):
    """Fréchet Video Distance between a folder of real and a folder of generated videos.

    The defaults are the StyleGAN-V protocol with Latte's strides: 2048 clips of 16 frames, one per
    video, real ones at a random offset and stride 3, generated ones from frame 0 at stride 1.
    Started by torchrun or accelerate launch, several processes share the work; the result is the
    same to the last bit.
    """

    real: str
    """Folder of real videos, of shards, or of folders of frames."""
    fake: str
    """Folder of generated videos, best lossless (ffv1), of shards, or of folders of frames."""
    preset: FVDPreset = "i3d_tf"
    """Which implementation of I3D the features are those of; videomae gives content-debiased FVD
    under a name of its own."""
    weights: str | None = None
    """The network's weights file; null looks at IVVAE_I3D, weights/ and ~/.cache/ivvae/."""
    download: bool = False
    """Fetch I3D's weights into ~/.cache/ivvae/ if they are found nowhere; their hash is checked."""
    allow_unknown_weights: bool = False
    """Take other I3D weights than the published ones; the score is then called fvd_unverified."""
    classifier: str | None = None
    """Folder of a trained classifier to use instead of I3D; the score is named after it."""
    split: str = "unstated"
    """Which videos `real` holds, such as train; recorded in the result."""
    frames: Annotated[int, Ge(1)] = 16
    """Frames per clip."""
    stride_real: Annotated[int, Ge(1)] = 3
    """Frames from one real clip frame to the next: the stride the generator was trained with."""
    stride_fake: Annotated[int, Ge(1)] = 1
    """The same for generated videos."""
    start_real: Literal["random", "first", "center"] = "random"
    """Where clips begin in real videos."""
    start_fake: Literal["random", "first", "center"] = "first"
    """Where clips begin in generated videos."""
    skip_fake: Annotated[int, Ge(0)] = 0
    """Frames left out at the start of generated videos; 17 frames give 16 with 0 or 1."""
    num_clips: Annotated[int, Ge(2)] | None = 2048
    """Most clips per side, one per video; null takes every video."""
    num_clips_real: Annotated[int, Ge(2)] | Literal["same", "all"] = "same"
    """Most real clips; same takes as many as of generated ones, which published protocols do."""
    noise_fake: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of Gaussian noise added to generated clips, in [-1, 1] units: how far does
    it move the score?"""
    fake_is_real: bool = False
    """`fake` holds real videos, such as held-out ones, which need not be alike: the distance of two
    real sets is the floor for generated ones."""
    allow_rate_mismatch: bool = False
    """Accept frame rates over strides that differ between the sides."""
    resamples: Annotated[int, Ge(0)] = 20
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


def run(config: EvalFVD) -> None:
    """Check, measure, write."""
    check_out(config.out)
    accelerator = make_accelerator()
    main_process = accelerator.is_main_process
    with accelerator.local_main_process_first():  # one process downloads
        if config.classifier:
            extractor = load_classifier(config.classifier)
        else:
            extractor = load_fvd_extractor(
                config.preset,
                config.weights,
                allow_unknown=config.allow_unknown_weights,
                download=config.download,
            )
    num_real = {"same": config.num_clips, "all": None}.get(
        str(config.num_clips_real), config.num_clips_real
    )
    protocol = ClipProtocol(
        frames=config.frames,
        stride=config.stride_real,
        start=config.start_real,
        num_clips=num_real,
        seed=config.seed,
        height=config.height,
        width=config.width,
    )
    options = {"on_error": config.on_error, "progress": main_process}
    real = ClipSource(config.real, protocol, **options)
    protocol = replace(
        protocol,
        stride=config.stride_fake,
        start=config.start_fake,
        skip=config.skip_fake,
        num_clips=config.num_clips,
        noise=config.noise_fake,
    )
    fake = ClipSource(config.fake, protocol, generated=not config.fake_is_real, **options)
    result = evaluate_fvd(
        real,
        fake,
        extractor,
        split=config.split,
        extraction=config.extraction(accelerator, config.feature_cache),
        resamples=config.resamples,
        allow_rate_mismatch=config.allow_rate_mismatch,
    )
    if main_process:
        give_out(result, fvd_line(result), config.out)


if __name__ == "__main__":
    main(EvalFVD, run)
