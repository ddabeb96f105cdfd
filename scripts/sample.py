"""Generate clips with a trained Latte."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from annotated_types import Ge, Le
from tqdm import tqdm

from common.accelerator import inference_precision, make_accelerator
from common.cli import main
from common.config import MAY_CHANGE, BatchSize, Config
from common.output_folder import Input, check_no_file, lock_folder, write_identity
from common.seeding import fold
from data.video.encode import to_uint8
from eval.clips.generated import ClipFolder, FirstFrames
from eval.clips.labels import write_labels
from eval.published.named_protocols import clips_to_generate
from latte import Latte
from latte.samplers import SamplerConfig, check_sampler
from latte.trained import Weights, clip_labels, load_trained, sample_clips
from latte.training_metadata import TrainingMetadata
from vae import weights_hash
from vae.base import VideoAutoencoder
from vae.parts import decoder_hash, encoder_hash, vae_hash
from vae.registry import load_vae


@dataclass(frozen=True, kw_only=True)
class Sample(Config):
    """Sample clips, lossless, for evaluation; run it again to go on where it stopped."""

    latte: Annotated[str, MAY_CHANGE]
    """Export folder of train_latte, or one of its checkpoints."""
    vae: Annotated[str, MAY_CHANGE]
    """The VAE that made its latents, as cache_latents.py took it, or one with the same encoder."""
    out: Annotated[str, MAY_CHANGE]
    """Folder for clip-000000.mkv (lossless), ... and samples.json with each clip's label."""
    num_clips: Annotated[int | None, Ge(1), Le(10_000_000), MAY_CHANGE] = None
    """Clips per seed; null takes as many as the protocol measures."""
    protocol: Annotated[str | None, MAY_CHANGE] = None
    """Published protocol that the clips are for, as eval_fvd.py takes it: gives num_clips; clips
    that are too few, too short or too small for it are refused."""
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
    seeds: Annotated[tuple[int, ...], MAY_CHANGE] = ()
    """Several sampling seeds instead: the clips of each go into a folder of their own, such as
    OUT/seed-0. eval_fvd.py --fake OUT then gives mean and standard deviation over them."""
    batch_size: Annotated[BatchSize, MAY_CHANGE] = 8
    """Clips per forward pass and process; does not change them."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision of Latte; "no" is float32, "auto" bf16 on a CUDA device and float32
    elsewhere; samples.json says which it was. The VAE decodes in float32."""
    mp4: Annotated[str | None, MAY_CHANGE] = None
    """Folder for MP4 copies, for people; evaluate the lossless files."""
    gif: Annotated[str | None, MAY_CHANGE] = None
    """Folder for GIF copies (256 colors), likewise."""
    weights: Weights = "ema"
    """The averaged weights, or a checkpoint's raw ones."""
    untrained: bool = False
    """Use fresh weights of the same model: the score of having learned nothing, for comparison."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.untrained and self.weights == "raw":
            raise ValueError("weights=raw has no effect on untrained=true; leave one out")
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: each seed once")
        if self.seeds and self.seed:
            raise ValueError(f"seed={self.seed} has no effect beside seeds={self.seeds}")
        if self.known_frames > 1 and self.first_frames is None:
            raise ValueError(
                f"known_frames={self.known_frames} has a meaning with first_frames only"
            )


def run(config: Sample) -> None:
    """Load and check, then sample the clips that are missing, seed by seed."""
    config = replace(config, precision=inference_precision(config.precision))
    accelerator = make_accelerator(mixed_precision=config.precision)
    latte, metadata = load_trained(config.latte, config.weights)
    check_sampler(config.sampler, metadata.process, latte.config)
    vae = load_vae(config.vae).to(accelerator.device)
    if encoder_hash(vae) != metadata.encoder_hash:
        raise ValueError(
            f"{config.vae}: not the encoder of {config.latte}'s latents; its weights differ. "
            "Give the VAE that cache_latents was run with, or one with another decoder alone."
        )
    shape = latte.config.latent_shape
    clip = vae.config.decoded_size(torch.empty(1, *shape, device="meta"), metadata.frames)
    count = clips_to_generate(config.protocol, config.num_clips, *clip)
    config = replace(config, num_clips=count)
    known = None
    if config.first_frames is not None:
        known = FirstFrames(
            *(config.first_frames, config.known_frames),
            encoder_hash=metadata.encoder_hash,
            latent_shape=shape,
            clips=count,
        )
    for seed in config.seeds or (config.seed,):
        one = replace(config, seed=seed, seeds=())
        if config.seeds:
            places = {"out": config.out, "mp4": config.mp4, "gif": config.gif}
            one = replace(one, **{k: f"{v}/seed-{seed}" for k, v in places.items() if v})
        _sample(one, accelerator, latte, metadata, vae, known)
    accelerator.end_training()


def _sample(
    config: Sample,
    accelerator: Accelerator,
    latte: Latte,
    metadata: TrainingMetadata,
    vae: VideoAutoencoder,
    known: FirstFrames | None,
) -> None:
    """The clips of one seed."""
    assert config.num_clips is not None
    labels = clip_labels(
        latte.config.num_classes,
        config.num_clips,
        config.labels,
        random_seed=config.seed if config.random_labels else None,
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
        inputs["first_frames"] = Input(str(known.latents.folder), known.latents.hash)
    clips = ClipFolder(
        folder=Path(config.out),
        mp4=None if config.mp4 is None else Path(config.mp4),
        gif=None if config.gif is None else Path(config.gif),
        frame_rate=metadata.frame_rate,
    )
    for folder in clips.folders:
        check_no_file(folder)  # before the first is made
    with ExitStack() as locks:
        for folder in clips.folders:
            locks.enter_context(lock_folder(folder, accelerator))
            write_identity(folder, config, inputs, accelerator, products=("clip-*",))

        if accelerator.is_main_process:
            files = [clips.clip(i).name for i in range(config.num_clips)]
            asked = dict(zip(files, labels or [None] * len(files), strict=True))
            continues = {files[i]: known.key(i) for i in range(len(files))} if known else None
            hashes = {"encoder_sha256": encoder_hash(vae), "decoder_sha256": decoder_hash(vae)}
            decoded_by = {"path": config.vae, **hashes}
            write_labels(clips.folder, asked, metadata.class_names, continues, decoded_by)
        accelerator.wait_for_everyone()

        # Clips of this process that are missing
        local_indices = range(
            accelerator.process_index, config.num_clips, accelerator.num_processes
        )
        todo = [i for i in local_indices if not clips.clip(i).exists()]
        if done := len(local_indices) - len(todo):
            accelerator.print(
                f"{config.out}: going on, {done} of {len(local_indices)} clips are there"
            )
        with tqdm(todo, "sampling", unit="clip", disable=not accelerator.is_main_process) as bar:
            drawn = sample_clips(
                *(latte, metadata, config.sampler, todo),
                labels=labels,
                seed=config.seed,
                batch_size=config.batch_size,
                known=known,
                autocast=accelerator.autocast,
            )
            for i, latent in drawn:
                parts = vae.decode_parts(latent, metadata.frames)
                video = torch.cat([x.clamp(-1, 1).cpu() for x in parts], dim=2)[0]
                clips.write(i, to_uint8(video))
                bar.update()

        # Copies of clips that were there before
        for i in sorted({*local_indices} - {*todo}):
            clips.copy(i)
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(Sample, run)
