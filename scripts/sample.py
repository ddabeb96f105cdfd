"""Generate clips with a trained Latte."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from accelerate import Accelerator
from annotated_types import Ge, Le

from common.accelerator import inference_precision, make_accelerator
from common.cli import main
from common.config import MAY_CHANGE
from common.output_folder import Input
from data.video.encode import to_uint8
from eval.clips.generated import ClipFolder, FirstFrames
from eval.published.named_protocols import clips_to_generate
from latte import Latte
from latte.trained import Sampling, sample_clips
from latte.training_metadata import TrainingMetadata
from vae import weights_hash
from vae.base import VideoAutoencoder
from vae.parts import decoder_hash, encoder_hash, vae_hash
from vae.registry import load_vae


@dataclass(frozen=True, kw_only=True)
class Sample(Sampling):
    """Sample clips, lossless, for evaluation; run it again to go on where it stopped."""

    vae: Annotated[str, MAY_CHANGE]
    """The VAE that made its latents, as cache_latents.py took it, or one with the same encoder."""
    out: Annotated[str, MAY_CHANGE]
    """Folder for clip-000000.mkv (lossless), ... and samples.json with each clip's label."""
    num_clips: Annotated[int | None, Ge(1), Le(10_000_000), MAY_CHANGE] = None
    """Clips per seed; null takes as many as the protocol measures."""
    protocol: Annotated[str | None, MAY_CHANGE] = None
    """Published protocol that the clips are for, as eval_fvd.py takes it: gives num_clips; clips
    that are too few, too short or too small for it are refused."""
    first_frames: Annotated[str | None, MAY_CHANGE] = None
    """Folder of latents by the same VAE: clip i starts with the first frames of latent i and goes
    on by replacement guidance (not in the paper). Default: clips from noise alone."""
    known_frames: Annotated[int, Ge(1)] = 1
    """Their number, latent frames; 1 is the first image of the clip."""
    seeds: Annotated[tuple[int, ...], MAY_CHANGE] = ()
    """Several sampling seeds instead: the clips of each go into a folder of their own, such as
    OUT/seed-0. eval_fvd.py --fake OUT then gives mean and standard deviation over them."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision of Latte; "no" is float32, "auto" bf16 on a CUDA device and float32
    elsewhere; identity.json says which it was. The VAE decodes in float32."""
    mp4: Annotated[str | None, MAY_CHANGE] = None
    """Folder for MP4 copies, for people; evaluate the lossless files."""
    gif: Annotated[str | None, MAY_CHANGE] = None
    """Folder for GIF copies (256 colors), likewise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} contains duplicates: list each seed once")
        if self.seeds and self.seed:
            raise ValueError(f"seed={self.seed} is ignored with seeds={self.seeds}: set only one")
        if self.known_frames > 1 and self.first_frames is None:
            raise ValueError(
                f"known_frames={self.known_frames} requires first_frames: set it, or leave "
                "known_frames at 1"
            )


def run(config: Sample) -> None:
    """Load and check, then sample the clips that are missing, seed by seed."""
    config = replace(config, precision=inference_precision(config.precision))
    accelerator = make_accelerator(mixed_precision=config.precision)
    latte, metadata = config.load()
    vae = load_vae(config.vae).to(accelerator.device)
    if encoder_hash(vae) != metadata.encoder_hash:
        raise ValueError(
            f"{config.vae}: not the encoder of {config.latte}'s latents; its weights differ. "
            "Give the VAE that cache_latents was run with, or one with another decoder alone."
        )
    shape, known = latte.config.latent_shape, None
    clip = vae.config.decoded_size(torch.empty(1, *shape, device="meta"), metadata.frames)
    count = clips_to_generate(config.protocol, config.num_clips, *clip)
    if config.first_frames is not None:
        known = FirstFrames(
            *(config.first_frames, config.known_frames),
            encoder_hash=metadata.encoder_hash,
            latent_shape=shape,
            clips=count,
        )
    for seed in config.seeds or (config.seed,):
        one = replace(config, num_clips=count, seed=seed, seeds=())
        if config.seeds:
            places = {"out": config.out, "mp4": config.mp4, "gif": config.gif}
            one = replace(one, **{k: f"{v}/seed-{seed}" for k, v in places.items() if v})
        _sample(one, accelerator, latte, metadata, vae, known)
    accelerator.end_training()


def _sample(
    config: Sample,
    accelerator: Accelerator,
    trained: Latte,
    metadata: TrainingMetadata,
    vae: VideoAutoencoder,
    known: FirstFrames | None,
) -> None:
    """The clips of one seed."""
    assert config.num_clips is not None
    latte = config.sampled_model(trained).to(accelerator.device)
    labels = config.clip_labels(latte.config.num_classes, config.num_clips)
    clips = ClipFolder(
        folder=Path(config.out),
        copies={kind: Path(to) for kind in ("mp4", "gif") if (to := getattr(config, kind))},
        frame_rate=metadata.frame_rate,
    )

    def draw(numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        drawn = sample_clips(
            *(config, latte, metadata, numbers),
            labels=labels,
            known=known,
            autocast=accelerator.autocast,
        )
        for number, latent in drawn:
            parts = [part.clamp(-1, 1).cpu() for part in vae.decode_parts(latent, metadata.frames)]
            yield number, to_uint8(torch.cat(parts, dim=2)[0])

    hashes = {"encoder_sha256": metadata.encoder_hash, "decoder_sha256": decoder_hash(vae)}
    clips.write(
        *(draw, accelerator, config),
        inputs={
            "latte": Input(config.latte, weights_hash(latte)),
            "vae": Input(config.vae, vae_hash(vae)),
        },
        labels=labels or [None] * config.num_clips,
        class_names=metadata.class_names,
        known=known,
        decoded_by={"path": config.vae, **hashes},
    )


if __name__ == "__main__":
    main(Sample, run)
