"""Inception Score of a folder of generated videos, with its ceiling and real clips beside."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Le

from common.accelerator import make_accelerator
from common.cli import main
from common.config import Frames
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.labels import seed_folders
from eval.clips.source import ClipSource
from eval.features.extractors import load_c3d, load_classifier
from eval.protocols.inception_protocol import PROTOCOLS, evaluate_is, is_line
from eval.protocols.measurement import GenerationScore, check_out, write_result


@dataclass(frozen=True, kw_only=True)
class EvalIS(GenerationScore):
    """Inception Score by C3D, or by your own classifier, of a folder of generated videos.

    Started by torchrun or accelerate launch, several processes share the work; the result is the
    same to the last bit.
    """

    fake: str
    """Folder of generated videos, best lossless (ffv1), of shards, or of folders of frames. Their
    labels must have been drawn uniformly."""
    real: str | None = None
    """Folder of real videos to score in the same way; null leaves them out."""
    data_set: str | None = None
    """What was trained on, as papers call it, such as UCF-101; the result then names the published
    scores and says which compare."""
    protocol: Literal["is_2048x10runs", "is_10k_10splits", "is_2048_10splits"] = "is_2048x10runs"
    """TGANv2's 10 runs of 2048 clips; 10,000 clips in 10 splits; StyleGAN-V's 2048 in 10 splits.
    Only scores of one protocol compare."""
    num_clips: Annotated[int, Ge(2)] | None = None
    """Clips per run instead of the protocol's; the score then has another name."""
    runs: Annotated[int, Ge(1), Le(10_000)] | None = None
    """Runs instead of the protocol's."""
    splits: Annotated[int, Ge(1)] | None = None
    """Splits instead of the protocol's."""
    weights: str | None = None
    """C3D's weights: TGANv2's npz or StyleGAN-V's TorchScript; null looks at IVVAE_C3D, weights/
    and ~/.cache/ivvae/."""
    weights_sha256: str | None = None
    """What the weights file must have. Without it the score is called is_unverified, because no
    hash of the published files is known here."""
    mean: str | None = None
    """TGANv2's mean2.npz, for its npz."""
    download: bool = False
    """Fetch TGANv2's files into ~/.cache/ivvae/ if C3D is found nowhere (317 MB)."""
    classifier: str | None = None
    """Folder of a trained classifier to use instead of C3D; the score is named after it."""
    frames: Frames = 16
    """Frames per clip; C3D takes 16."""
    skip_fake: Annotated[int, Ge(0)] = 1
    """Frames left out at the start of generated videos: 1 drops frame 0 of 17, like the paper."""
    stride_fake: Frames = 1
    """Frames from one generated clip frame to the next."""
    stride_real: Frames = 1
    """The same for real videos."""
    start_fake: Literal["random", "first", "center"] = "first"
    """Where clips begin in generated videos."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier and (self.weights or self.weights_sha256 or self.mean or self.download):
            raise ValueError(
                "classifier replaces C3D: leave out weights, weights_sha256, mean and download"
            )
        if not self.classifier and self.frames != 16:
            raise ValueError(f"frames={self.frames}: C3D takes 16")


def run(config: EvalIS) -> None:
    """Check, measure, write."""
    check_out(config, config.out)
    if (folders := seed_folders(config.fake)) != [config.fake]:
        raise ValueError(
            f"fake={config.fake}: holds the clips of several sampling seeds. Give one of them, "
            f"such as {folders[0]}"
        )
    changes = {name: getattr(config, name) for name in ("num_clips", "runs", "splits")}
    changes = {name: value for name, value in changes.items() if value is not None}
    protocol = replace(PROTOCOLS[config.protocol], **changes)
    accelerator = make_accelerator()
    main_process = accelerator.is_main_process
    with accelerator.local_main_process_first():  # one process downloads
        if config.classifier:
            extractor = load_classifier(config.classifier, "probabilities")
        else:
            extractor = load_c3d(
                config.weights, config.mean, sha256=config.weights_sha256, download=config.download
            )
    clips = ClipProtocol(
        frames=config.frames,
        stride=config.stride_fake,
        start=config.start_fake,
        skip=config.skip_fake,
        num_clips=protocol.total,
        seed=config.seed,
        height=config.height,
        width=config.width,
        noise=config.noise_fake,
    )
    options = {"on_error": config.on_error, "progress": main_process}
    fake = ClipSource(config.fake, clips, generated=not config.fake_is_real, **options)
    clips = replace(clips, stride=config.stride_real, start="random", skip=0, noise=0.0)
    result = evaluate_is(
        fake,
        extractor,
        protocol,
        real=ClipSource(config.real, clips, **options) if config.real else None,
        data_set=config.data_set,
        extraction=config.extraction(accelerator),
        allow_rate_mismatch=config.allow_rate_mismatch,
    )
    if main_process:
        write_result(config, result, is_line(result), config.fake)


if __name__ == "__main__":
    main(EvalIS, run)
