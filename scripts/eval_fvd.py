"""Fréchet Video Distance between a folder of real and a folder of generated videos."""

import json
import sys
from dataclasses import dataclass, replace
from typing import Any, Literal

from common.accelerator import make_accelerator
from common.cli import main
from common.files import write_json
from eval.clips.source import ClipProtocol, ClipSource
from eval.features.extractors import (
    Extractor,
    FVDPreset,
    load_classifier,
    load_fvd_extractor,
)
from eval.protocols.fvd import evaluate_fvd


@dataclass(frozen=True, kw_only=True)
class Config:
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
    frames: int = 16
    """Frames per clip."""
    stride_real: int = 3
    """Frames from one real clip frame to the next: the interval the generator was trained with."""
    stride_fake: int = 1
    """The same for generated videos."""
    start_real: Literal["random", "first", "center"] = "random"
    """Where clips begin in real videos."""
    start_fake: Literal["random", "first", "center"] = "first"
    """Where clips begin in generated videos."""
    skip_fake: int = 0
    """Frames left out at the start of generated videos; 17 frames give 16 with 0 or 1."""
    num_clips: int | None = 2048
    """Most clips per side, one per video; null takes every video."""
    height: int | None = None
    """Resize and centre-crop both sides to this height first, pixels; null keeps their size. Needed
    where real videos are larger than generated ones."""
    width: int | None = None
    """See height."""
    allow_rate_mismatch: bool = False
    """Accept frame rates over strides that differ between the sides."""
    seed: int = 0
    """Chooses videos and offsets."""
    batch_size: int = 8
    """Clips per forward pass."""
    workers: int = 0
    """Processes that decode ahead."""
    device: str = "auto"
    """auto (each process its own GPU, where there is one), cpu, cuda, cuda:1, ..."""
    resamples: int = 20
    """Bootstrap resamples for the standard deviation; 0 leaves it out."""
    cache: str | None = None
    """Folder that keeps features for the next run; null keeps none."""
    out: str | None = None
    """JSON file for the result; null prints it."""

    def __post_init__(self) -> None:
        if self.classifier and (self.weights or self.allow_unknown_weights or self.download):
            raise ValueError(
                "classifier replaces I3D: leave out weights, allow_unknown_weights and download"
            )


def run(config: Config) -> None:
    """Check, measure, write."""
    accelerator = make_accelerator()
    main_process = accelerator.is_main_process
    with accelerator.local_main_process_first():  # one process downloads
        extractor = _extractor(config)
    protocol = ClipProtocol(
        frames=config.frames,
        stride=config.stride_real,
        start=config.start_real,
        count=config.num_clips,
        seed=config.seed,
        height=config.height,
        width=config.width,
    )
    real = ClipSource(config.real, protocol, progress=main_process)
    protocol = replace(
        protocol, stride=config.stride_fake, start=config.start_fake, skip=config.skip_fake
    )
    fake = ClipSource(config.fake, protocol, generated=True, progress=main_process)
    result = evaluate_fvd(
        real,
        fake,
        extractor,
        split=config.split,
        batch_size=config.batch_size,
        device=accelerator.device if config.device == "auto" else config.device,
        workers=config.workers,
        cache=config.cache,
        resamples=config.resamples,
        allow_rate_mismatch=config.allow_rate_mismatch,
    )
    if not main_process:
        return
    if config.out:
        write_json(config.out, result)
    else:
        print(json.dumps(result, indent=2))
    print(report(result), file=sys.stdout if config.out else sys.stderr)  # stdout stays JSON


def report(result: dict[str, Any]) -> str:
    """One line with the value, its error and what it was measured on."""
    protocol, infinity = result["protocol"], result["infinity"]
    spread = f" ± {result['std']:.4g}" if result["std"] is not None else ""
    limit = f"at infinity {infinity['value']:.6g}, " if infinity else ""
    start = protocol["start_fake"]
    place = f"from frame {protocol['skip_fake']}" if start == "first" else f"start {start}"
    return (
        f"{result['name']} = {result['value']:.6g}{spread} ({limit}KVD {result['kvd']:.4g}; "
        f"{protocol['clips_real']} real clips at stride {protocol['stride_real']}, split "
        f"{protocol['split']}; {protocol['clips_fake']} generated at stride "
        f"{protocol['stride_fake']}, {place}; {protocol['network']['name']})"
    )


def _extractor(config: Config) -> Extractor:
    if config.classifier:
        return load_classifier(config.classifier)
    return load_fvd_extractor(
        config.preset,
        config.weights,
        allow_unknown=config.allow_unknown_weights,
        download=config.download,
    )


if __name__ == "__main__":
    main(Config, run)
