"""Inception Score of a folder of generated videos, with its ceiling and real clips beside."""

import json
import sys
from dataclasses import dataclass, replace
from typing import Any, Literal

from common.accelerator import make_accelerator
from common.cli import main
from common.files import write_json
from eval.clips.source import ClipProtocol, ClipSource
from eval.features.extractors import Extractor, load_c3d, load_classifier
from eval.protocols.inception_protocol import PROTOCOLS, evaluate_is


@dataclass(frozen=True, kw_only=True)
class Config:
    """Inception Score by C3D, or by your own classifier, of a folder of generated videos.

    Started by torchrun or accelerate launch, several processes share the work; the result is the
    same to the last bit.
    """

    fake: str
    """Folder of generated videos, best lossless (ffv1), of shards, or of folders of frames. Their
    labels must have been drawn uniformly."""
    real: str | None = None
    """Folder of real videos to score in the same way; null leaves them out."""
    protocol: Literal["is_2048x10runs", "is_10k_10splits", "is_2048_10splits"] = "is_2048x10runs"
    """TGANv2's 10 runs of 2048 clips; 10,000 clips in 10 splits; StyleGAN-V's 2048 in 10 splits.
    Only scores of one protocol compare."""
    clips: int | None = None
    """Clips per run instead of the protocol's; the score then has another name."""
    runs: int | None = None
    """Runs instead of the protocol's."""
    splits: int | None = None
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
    frames: int = 16
    """Frames per clip; C3D takes 16."""
    skip_fake: int = 1
    """Frames left out at the start of generated videos: 1 drops frame 0 of 17, like the paper."""
    stride_fake: int = 1
    """Frames from one generated clip frame to the next."""
    stride_real: int = 1
    """The same for real videos."""
    height: int | None = None
    """Resize and centre-crop both sides to this height first, pixels; null keeps their size."""
    width: int | None = None
    """See height."""
    seed: int = 0
    """Chooses videos, and offsets in real ones."""
    batch_size: int = 8
    """Clips per forward pass."""
    workers: int = 0
    """Processes that decode ahead."""
    device: str = "auto"
    """auto (each process its own GPU, where there is one), cpu, cuda, cuda:1, ..."""
    cache: str | None = None
    """Folder that keeps probabilities for the next run; null keeps none."""
    out: str | None = None
    """JSON file for the result; null prints it."""

    def __post_init__(self) -> None:
        if self.classifier and (self.weights or self.weights_sha256 or self.mean or self.download):
            raise ValueError(
                "classifier replaces C3D: leave out weights, weights_sha256, mean and download"
            )
        if not self.classifier and self.frames != 16:
            raise ValueError(f"frames={self.frames}: C3D takes 16")


def run(config: Config) -> None:
    """Check, measure, write."""
    changes = {name: getattr(config, name) for name in ("clips", "runs", "splits")}
    changes = {name: value for name, value in changes.items() if value is not None}
    protocol = replace(PROTOCOLS[config.protocol], **changes)
    accelerator = make_accelerator()
    with accelerator.local_main_process_first():  # one process downloads
        extractor = _extractor(config)
    clips = ClipProtocol(
        frames=config.frames,
        stride=config.stride_fake,
        start="first",
        skip=config.skip_fake,
        count=protocol.total,
        seed=config.seed,
        height=config.height,
        width=config.width,
    )
    show = accelerator.is_main_process
    fake = ClipSource(config.fake, clips, generated=True, progress=show)
    clips = replace(clips, stride=config.stride_real, start="random", skip=0)
    real = ClipSource(config.real, clips, progress=show) if config.real else None
    result = evaluate_is(
        fake,
        extractor,
        protocol,
        real=real,
        batch_size=config.batch_size,
        device=accelerator.device if config.device == "auto" else config.device,
        workers=config.workers,
        cache=config.cache,
    )
    if not accelerator.is_main_process:
        return
    if config.out:
        write_json(config.out, result)
    else:
        print(json.dumps(result, indent=2))
    print(
        report(result),
        file=sys.stdout if config.out else sys.stderr,  # stdout stays JSON
    )


def _extractor(config: Config) -> Extractor:
    if config.classifier:
        return load_classifier(config.classifier, "probabilities")
    return load_c3d(
        config.weights, config.mean, sha256=config.weights_sha256, download=config.download
    )


def report(result: dict[str, Any]) -> str:
    """One line with N, splits, ceiling and the real clips' score."""
    protocol = result["protocol"]
    line = (
        f"{result['name']} = {_with_spread(result)} (N = {protocol['clips']}, "
        f"{protocol['runs']} runs, {protocol['splits']} splits; at most {result['ceiling']:.4g})"
    )
    real = result["real"]
    if real:
        line += f"; real clips {_with_spread(real)} (N = {real['clips']}, {real['runs']} runs)"
    return "\n".join([line, *result["notes"]])


def _with_spread(score: dict[str, Any]) -> str:
    spread = "" if score["std"] is None else f" ± {score['std']:.3g}"
    return f"{score['value']:.5g}{spread}"


if __name__ == "__main__":
    main(Config, run)
