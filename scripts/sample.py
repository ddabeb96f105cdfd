"""Generate clips with a trained Latte."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from data.encode import to_uint8, write_video
from engine.accelerator import make_accelerator
from engine.cli import main
from engine.compare import differences
from engine.files import read_json, write_json
from engine.seeding import fold
from latte import Latte
from latte.diffusion import GaussianDiffusion
from latte.notes import LatentNotes
from latte.samplers import SamplerConfig, sample
from vae import VideoVAE, weights_hash


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sample clips, lossless, for evaluation; run it again to go on where it stopped."""

    latte: str
    """Export folder of train_latte."""
    vae: str
    """Folder or hub id of the VAE that made its latents."""
    out: str
    """Folder for clip-000000.mkv (lossless), ... and samples.json with each clip's label."""
    num_clips: int
    """Clips in all."""
    labels: tuple[int, ...] | None = None
    """Labels to take in turn; default: all classes in turn."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Sampler, steps and guidance."""
    seed: int = 0
    """With the clip's number, gives its noise."""
    batch_size: int = 8
    """Clips per forward pass and process; does not change them."""
    mp4: str | None = None
    """Folder for MP4 copies, for people; evaluate the lossless files."""
    untrained: bool = False
    """Use fresh weights of the same model: the score of having learned nothing, for comparison."""

    def __post_init__(self) -> None:
        if self.num_clips < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_clips={self.num_clips} and batch_size={self.batch_size} must be at least 1"
            )


def run(config: Sample) -> None:
    """Sample the clips that are missing."""
    accelerator = make_accelerator()
    latte = Latte.from_pretrained(config.latte)
    notes = LatentNotes.load(config.latte)
    vae = VideoVAE.from_pretrained(config.vae).to(accelerator.device)
    if weights_hash(vae) != notes.vae_hash:
        raise ValueError(
            f"{config.vae}: not the VAE of {config.latte}'s latents; its weights differ. "
            "Give the VAE that cache_latents was run with."
        )
    if config.untrained:
        torch.manual_seed(fold(config.seed, "untrained"))
        latte = Latte(latte.config).eval()
    latte.to(accelerator.device)
    labels = _labels(config, latte)
    out = Path(config.out)
    if accelerator.is_main_process:
        _claim(out, config, notes, labels)
    accelerator.wait_for_everyone()

    rank, world = accelerator.process_index, accelerator.num_processes
    mine = range(config.num_clips)[rank::world]
    todo = [i for i in mine if not _clip(out, i).exists()]
    if len(todo) < len(mine):
        accelerator.print(
            f"{out}: going on, {len(mine) - len(todo)} of {len(mine)} clips are there"
        )
    diffusion = GaussianDiffusion(notes.diffusion)
    mine = todo[rank::world]
    with tqdm(total=len(todo), desc="sampling", unit="clip", disable=rank > 0) as bar:
        for first in range(0, len(todo), config.batch_size):
            indices = todo[first : first + config.batch_size]
            given = None if labels is None else [labels[i] for i in indices]
            z = sample(
                latte, diffusion, config.sampler, indices=indices, labels=given, seed=config.seed
            )
            for i, latent in zip(indices, notes.denormalize(z).split(1), strict=True):
                frames = _decode(vae, latent)
                if config.mp4 is not None:
                    write_video(Path(config.mp4) / f"clip-{i:06d}.mp4", frames, notes.frame_rate)
                write_video(_clip(out, i), frames, notes.frame_rate, codec="ffv1")
                bar.update()
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _labels(config: Sample, latte: Latte) -> list[int] | None:
    classes = latte.config.num_classes
    if classes is None:
        if config.labels is not None:
            raise ValueError(f"{config.latte}: is unconditional; it takes no labels")
        return None
    chosen = tuple(range(classes)) if config.labels is None else config.labels
    if not chosen or min(chosen) < 0 or max(chosen) >= classes:
        raise ValueError(f"labels={chosen}: {config.latte} knows the classes 0 to {classes - 1}")
    return [chosen[i % len(chosen)] for i in range(config.num_clips)]


def _claim(out: Path, config: Sample, notes: LatentNotes, labels: list[int] | None) -> None:
    """Record what the folder's clips are, or refuse to mix them with others."""
    made = {
        k: v
        for k, v in asdict(config).items()
        if k not in ("out", "batch_size", "mp4", "num_clips")
    }
    made["labels"] = None if config.labels is None else list(config.labels)
    file = out / "samples.json"
    if file.exists() and (changes := differences(read_json(file)["config"], made)):
        raise ValueError(
            f"{out}: holds other samples: {'; '.join(changes)}. Choose another folder."
        )
    names = notes.class_names
    clips: list[dict[str, Any]] = [
        {
            "file": _clip(out, i).name,
            "label": None if labels is None else labels[i],
            "class_name": None if labels is None else names[labels[i]],
        }
        for i in range(config.num_clips)
    ]
    write_json(file, {"config": made, "class_names": list(names), "clips": clips})


def _clip(out: Path, index: int) -> Path:
    return out / f"clip-{index:06d}.mkv"


@torch.no_grad()
def _decode(vae: VideoVAE, latent: torch.Tensor) -> UInt8[np.ndarray, "t h w c"]:
    """Group by group, so that the network's memory does not grow with the clip."""
    groups = vae.stream_decode(latent.split(1, dim=2))
    return to_uint8(torch.cat([x.clamp(-1, 1).cpu() for x in groups], dim=2)[0])


if __name__ == "__main__":
    main(Sample, run)
