"""Generate clips with a trained Latte."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import UInt8
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from common.accelerator import inference_precision, make_accelerator
from common.cli import main
from common.config import MAY_CHANGE, Config
from common.files import atomic_path, write_json
from common.output_folder import Input, check_no_file, lock_folder, write_identity
from common.seeding import fold
from data.latents.dataset import LatentDataset
from data.video.decode import read_frames
from data.video.encode import to_uint8, write_video
from data.video.probe import probe
from latte import Latte
from latte.samplers import SamplerConfig, check_sampler, sample
from latte.training_metadata import TrainingMetadata
from vae import VideoVAE, weights_hash
from vae.base import VideoAutoencoder
from vae.registry import load_vae, vae_hash


@dataclass(frozen=True, kw_only=True)
class Sample(Config):
    """Sample clips, lossless, for evaluation; run it again to go on where it stopped."""

    latte: Annotated[str, MAY_CHANGE]
    """Export folder of train_latte, or one of its checkpoints."""
    vae: Annotated[str, MAY_CHANGE]
    """The VAE that made its latents, as cache_latents.py took it."""
    out: Annotated[str, MAY_CHANGE]
    """Folder for clip-000000.mkv (lossless), ... and samples.json with each clip's label."""
    num_clips: Annotated[int, Ge(1), MAY_CHANGE]
    """Clips in all."""
    labels: tuple[int, ...] | None = None
    """Labels to take in turn; default: all classes in turn."""
    random_labels: bool = False
    """Draw each clip's label uniformly from them instead, by the clip's number."""
    first_frames: Annotated[str | None, MAY_CHANGE] = None
    """Folder of latents by the same VAE: clip i starts with the first frames of latent i and goes
    on by replacement guidance (not in the paper). Default: clips from noise alone."""
    known_frames: Annotated[int, Ge(1)] = 1
    """Their number, latent frames; 1 is the first image of the clip."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Sampler, steps and guidance."""
    seed: int = 0
    """With the clip's number, gives its noise."""
    batch_size: Annotated[int, Ge(1), MAY_CHANGE] = 8
    """Clips per forward pass and process; does not change them."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision of Latte; "no" is float32, "auto" bf16 on a CUDA device and float32
    elsewhere; samples.json says which it was. The VAE decodes in float32."""
    mp4: Annotated[str | None, MAY_CHANGE] = None
    """Folder for MP4 copies, for people; evaluate the lossless files."""
    gif: Annotated[str | None, MAY_CHANGE] = None
    """Folder for GIF copies (256 colors), likewise."""
    weights: Literal["ema", "raw"] = "ema"
    """The averaged weights, or a checkpoint's raw ones."""
    untrained: bool = False
    """Use fresh weights of the same model: the score of having learned nothing, for comparison."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.untrained and self.weights == "raw":
            raise ValueError("weights=raw has no effect on untrained=true; leave one out")
        if self.known_frames > 1 and self.first_frames is None:
            raise ValueError(
                f"known_frames={self.known_frames} has a meaning with first_frames only"
            )


def run(config: Sample) -> None:
    """Sample the clips that are missing."""
    config = replace(config, precision=inference_precision(config.precision))
    accelerator = make_accelerator(mixed_precision=config.precision)
    latte, metadata = _trained(config)
    check_sampler(config.sampler, metadata.process, latte.config)
    labels = _labels(config, latte)
    known = _known(config, metadata, latte)
    vae = load_vae(config.vae).to(accelerator.device)
    if vae_hash(vae) != metadata.vae_hash:
        raise ValueError(
            f"{config.vae}: not the VAE of {config.latte}'s latents; its weights differ. "
            "Give the VAE that cache_latents was run with."
        )
    if config.untrained:
        torch.manual_seed(fold(config.seed, "untrained"))
        latte = Latte(latte.config).eval()
    latte.to(accelerator.device)
    inputs = {
        "latte": Input(config.latte, weights_hash(latte)),
        "vae": Input(config.vae, vae_hash(vae)),
    }
    if known is not None:
        inputs["first_frames"] = Input(str(known.folder), known.hash)
    out = Path(config.out)
    folders = {Path(folder).resolve(): folder for folder in (out, config.mp4, config.gif) if folder}
    for folder in folders.values():
        check_no_file(Path(folder))  # before the first is made
    with ExitStack() as locks:
        for folder in folders.values():
            locks.enter_context(lock_folder(folder, accelerator))
            write_identity(folder, config, inputs, accelerator, products=("clip-*",))
        if accelerator.is_main_process:
            _list_clips(out, config, metadata, labels, known)
        accelerator.wait_for_everyone()
        local_indices = range(
            accelerator.process_index, config.num_clips, accelerator.num_processes
        )
        todo = [i for i in local_indices if not _clip(out, i).exists()]
        if done := len(local_indices) - len(todo):
            accelerator.print(f"{out}: going on, {done} of {len(local_indices)} clips are there")
        with tqdm(todo, "sampling", unit="clip", disable=not accelerator.is_main_process) as bar:
            for first in range(0, len(todo), config.batch_size):
                indices = todo[first : first + config.batch_size]
                with accelerator.autocast():
                    z = sample(
                        latte,
                        metadata.process,
                        config.sampler,
                        indices=indices,
                        labels=None if labels is None else [labels[i] for i in indices],
                        seed=config.seed,
                        known=_first_frames(config, metadata, known, indices),
                    )
                for i, latent in zip(indices, metadata.denormalize(z).split(1), strict=True):
                    _write(config, i, _decode(vae, latent, metadata.frames), metadata.frame_rate)
                    bar.update()
        for i in sorted({*local_indices} - {*todo}):
            _copy(config, i, metadata.frame_rate)
        accelerator.wait_for_everyone()
    accelerator.end_training()


def _trained(config: Sample) -> tuple[Latte, TrainingMetadata]:
    """The model with the weights asked for, and what it knows of its latents."""
    folder = Path(config.latte)
    averaged = folder / "ema" if (folder / "state.json").is_file() else folder
    latte, metadata = Latte.from_pretrained(averaged), TrainingMetadata.load(averaged)
    if config.weights == "raw":
        file = folder / "model.safetensors"
        if averaged == folder or not file.is_file():
            raise ValueError(
                f"{folder}: has no raw weights. Give a checkpoint, such as RUN/checkpoints/step-N."
            )
        latte.load_state_dict(load_file(file))
    return latte, metadata


def _known(config: Sample, metadata: TrainingMetadata, latte: Latte) -> LatentDataset | None:
    """The latents whose first frames are continued, once they are known to fit."""
    if config.first_frames is None:
        return None
    known, wanted = LatentDataset(config.first_frames, "mean"), latte.config
    known.check_vae(metadata.vae_hash)
    c, t, h, w = known.latent_shape
    if (c, h, w) != (wanted.in_channels, wanted.height, wanted.width):
        raise ValueError(
            f"{known.folder}: latents of (c, h, w) = {(c, h, w)}, but {config.latte} makes "
            f"{(wanted.in_channels, wanted.height, wanted.width)}. Cache them at its size."
        )
    if config.known_frames > min(t, wanted.num_frames - 1):
        raise ValueError(
            f"known_frames={config.known_frames}: {known.folder} has {t} latent frames, and of the "
            f"{wanted.num_frames} of a clip at least one must be left to sample"
        )
    if config.num_clips > len(known):
        raise ValueError(f"num_clips={config.num_clips}: {known.folder} has {len(known)} latents")
    return known


def _first_frames(
    config: Sample, metadata: TrainingMetadata, known: LatentDataset | None, indices: list[int]
) -> Tensor | None:
    if known is None:
        return None
    frames = [known.draw(0, i)[0][:, : config.known_frames] for i in indices]
    return metadata.normalize(torch.stack(frames))  # b c k h w


def _labels(config: Sample, latte: Latte) -> list[int] | None:
    classes = latte.config.num_classes
    if classes is None:
        if config.labels is not None or config.random_labels:
            raise ValueError(f"{config.latte}: is unconditional; it takes no labels")
        return None
    chosen = tuple(range(classes)) if config.labels is None else config.labels
    if not chosen or min(chosen) < 0 or max(chosen) >= classes:
        raise ValueError(f"labels={chosen}: {config.latte} knows the classes 0 to {classes - 1}")
    places = [
        fold(config.seed, "label", i) if config.random_labels else i
        for i in range(config.num_clips)
    ]
    return [chosen[place % len(chosen)] for place in places]


def _list_clips(
    out: Path,
    config: Sample,
    metadata: TrainingMetadata,
    labels: list[int] | None,
    known: LatentDataset | None,
) -> None:
    """Write samples.json: what each clip was asked to show."""
    names = metadata.class_names
    clips: list[dict[str, Any]] = [
        {
            "file": _clip(out, i).name,
            "label": None if labels is None else labels[i],
            "class_name": None if labels is None else names[labels[i]],
            **({} if known is None else {"continues": known.raw(i)["key"]}),
        }
        for i in range(config.num_clips)
    ]
    write_json(out / "samples.json", {"class_names": list(names), "clips": clips})


def _clip(out: Path, index: int) -> Path:
    return out / f"clip-{index:06d}.mkv"


def _write(
    config: Sample, index: int, frames: UInt8[np.ndarray, "t h w c"], frame_rate: float
) -> None:
    write_video(_clip(Path(config.out), index), frames, frame_rate, codec="ffv1")
    _copy(config, index, frame_rate, frames)


def _copy(
    config: Sample,
    index: int,
    frame_rate: float,
    frames: UInt8[np.ndarray, "t h w c"] | None = None,
) -> None:
    """Write the copies for people that are missing, of the lossless file or its `frames`."""
    wanted = {"mp4": config.mp4, "gif": config.gif}
    paths = {
        kind: path
        for kind, folder in wanted.items()
        if folder is not None and not (path := Path(folder) / f"clip-{index:06d}.{kind}").exists()
    }
    if not paths:
        return
    if frames is None:
        lossless = _clip(Path(config.out), index)
        frames = read_frames(lossless, range(probe(lossless).frames))
    if "mp4" in paths:
        write_video(paths["mp4"], frames, frame_rate)
    if "gif" in paths:
        first, *others = (Image.fromarray(frame) for frame in frames)
        with atomic_path(paths["gif"]) as temporary:
            first.save(
                temporary,
                format="GIF",
                save_all=True,
                append_images=others,
                duration=1000 / frame_rate,
                loop=0,
            )


@torch.no_grad()
def _decode(
    vae: VideoAutoencoder, latent: Tensor, frames: int | None
) -> UInt8[np.ndarray, "t h w c"]:
    """With our VAE group by group, so that the network's memory does not grow with the clip."""
    if isinstance(vae, VideoVAE):
        groups = vae.stream_decode(latent.split(1, dim=2))
    else:
        groups = [vae.decode(latent, size=vae.config.decoded_size(latent, frames))]
    return to_uint8(torch.cat([x.clamp(-1, 1).cpu() for x in groups], dim=2)[0])


if __name__ == "__main__":
    main(Sample, run)
