"""Fréchet Video Distance between a folder of real and folders of generated videos."""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from common.accelerator import make_accelerator
from common.cli import main
from eval.clips.labels import seed_folders
from eval.clips.source import ClipSource
from eval.features.statistics import FILES, save_statistics
from eval.protocols.diagnosis import diagnose, diagnosis_lines
from eval.protocols.fvd import check_clips, evaluate_fvd, fvd_line, over_seeds, real_features
from eval.protocols.fvd_config import FVDConfig, real_floor
from eval.protocols.measurement import check_out, write_result
from eval.protocols.memorization import memorized_clips


@dataclass(frozen=True, kw_only=True)
class EvalFVD(FVDConfig):
    """Fréchet Video Distance between a folder of real and folders of generated videos.

    The defaults are the StyleGAN-V protocol with Latte's strides: 2048 clips of 16 frames, one per
    video, real ones at a random offset and stride 3, generated ones from frame 0 at stride 1.
    `--protocol` takes those of a published score.
    Started by torchrun or accelerate launch, several processes share the work; the result is the
    same to the last bit.
    """

    real: str
    """Folder of real videos, of shards, or of folders of frames; or a file of statistics: of
    save_real, of cd-fvd or of StyleGAN-V (.pkl under its published name)."""
    fake: list[str] = field(default_factory=list)
    """Folder of generated videos, best lossless (ffv1), of shards, or of folders of frames; one
    flag each. Several, of other sampling seeds, give the mean and its standard deviation; the
    folder of sample.py --seeds stands for those of all its seeds."""
    save_real: str | None = None
    """File (.safetensors) for the real clips' features and protocol, to pass as real later."""
    held_out: str | None = None
    """Folder of real videos that were not trained on, while `real` holds those that were: how many
    generated clips are nearer to a training clip than these are?"""
    nearest_stride: Annotated[int, Ge(1)] | None = None
    """With held_out, also name the training clip nearest to every generated and every held-out
    clip, by features and by pixels, among all that start this number of frames apart in the
    videos of `real`, and not only among those of the distance; null: not."""
    floor: bool = False
    """Also measure real clips against other real clips: what a perfect generator would get."""
    diagnose: bool = False
    """Also measure how far slips move this very score: other strides, lossy files, truncated
    pixels, other resizes, the other port of I3D, half of the clips, copies, means over batches.
    Computes features up to eight times more."""
    resamples: Annotated[int, Ge(0), Le(100_000)] = 20
    """Bootstrap resamples for the standard deviation; 0 leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fake and not self.save_real:
            raise ValueError("nothing to measure: give --fake, or --save_real")
        if self.nearest_stride and not self.held_out:
            raise ValueError(
                f"nearest_stride={self.nearest_stride} requires held_out: set it, or leave "
                "nearest_stride out"
            )
        if self.nearest_stride and Path(self.real).suffix in FILES:
            raise ValueError(
                f"nearest_stride={self.nearest_stride} looks for clips, but real={self.real} is a "
                "file of statistics. Give the folder of the videos."
            )
        if self.save_real and Path(self.save_real).suffix != ".safetensors":
            raise ValueError(f"save_real={self.save_real}: must end in .safetensors")


def run(config: EvalFVD) -> None:
    """Check, measure, write."""
    check_out(config, config.out, config.save_real)
    accelerator = make_accelerator()
    main_process = accelerator.is_main_process
    real, values = config.real_clips(config.real, main_process)
    if config.save_real and not isinstance(real, ClipSource):
        raise ValueError(
            f"save_real={config.save_real}: real={config.real} is already a file of statistics. "
            "Give the folder of real videos."
        )
    folders = [each for folder in config.fake for each in seed_folders(folder)]
    fakes = [config.source("fake", folder, values, main_process) for folder in folders]
    for fake in fakes:
        check_clips(real, fake, config.allow_rate_mismatch)
    with accelerator.local_main_process_first():  # one process downloads
        extractor = config.load_network(values["preset"])
    extraction = config.extraction(accelerator)
    features = real_features(real, extractor, extraction)
    if config.save_real and main_process:
        assert isinstance(real, ClipSource)
        assert features is not None
        save_statistics(config.save_real, features, real, extractor, values)
        print(f"wrote {config.save_real}: {len(real)} clips of {config.real}", file=sys.stderr)
    if not fakes:
        return
    evaluate = partial(
        evaluate_fvd,
        extractor=extractor,
        extraction=extraction,
        features=features,
        protocol=config.protocol,
        data_set=values["data_set"],
        split=values["split"],
        resamples=config.resamples,
        allow_rate_mismatch=config.allow_rate_mismatch,
    )
    result = over_seeds([evaluate(real, fake) for fake in fakes])
    if config.floor:
        result["floor"] = real_floor(real, features, extractor, extraction)
    if config.diagnose:
        result["diagnosis"] = diagnose(real, features, fakes[0], extractor, extraction)
    if config.held_out:
        others = config.source("real", config.held_out, values, main_process)
        among = None
        if config.nearest_stride and isinstance(real, ClipSource):
            among = real, config.nearest_stride
        result["memorization"] = memorized_clips(
            fakes[0], features, others, extractor, extraction, among=among
        )
    if main_process:
        text = "\n".join([fvd_line(result), *diagnosis_lines(result.get("diagnosis", []))])
        write_result(config, result, text, config.fake[0])


if __name__ == "__main__":
    main(EvalFVD, run)
