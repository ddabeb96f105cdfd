"""Train Latte on cached latents."""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor, nn

from common.cli import main
from common.config import MAY_CHANGE, Config
from common.output_folder import Input, lock_folder
from data.clips.loader import training_batches
from data.clips.mixture import Mixture, Source, logging_sources, source_names
from data.latents.dataset import (
    JointLatents,
    LatentDataset,
    Scaling,
    check_alike,
    check_labeled,
)
from data.latents.mixture import hash_of, mix_latents
from engine.accelerator import training_accelerator
from engine.config import TrainConfig
from engine.dry_run import dry_run
from engine.prefetch import with_draws
from engine.train import Trainer
from eval.protocols.sample_fvd import SampleScore, SampleScoreConfig, preview_of
from latte import Latte
from latte.config import LatteOptions
from latte.diffusion import DiffusionConfig
from latte.diffusion_process import make_process
from latte.flow import FlowConfig
from latte.samplers import SamplerConfig, check_sampler, sample
from latte.training import ImageOptions, JointBatch, LatteLoss, initial_model, prepare
from latte.training_metadata import TrainingMetadata
from vae import weights_hash
from vae.base import VideoAutoencoder
from vae.parts import encoder_hash
from vae.registry import load_vae


@dataclass(frozen=True, kw_only=True)
class TrainLatte(Config):
    """Train Latte, unconditional or class-conditional, on the latents that cache_latents wrote.

    `{size}` in train.folder stands for the model's size and patch, such as xl2.
    """

    train: TrainConfig
    """Length, batch, optimizer, run folder."""
    latents: str
    """Folder of the latent cache."""
    sources: tuple[Source, ...] = ()
    """Further caches by the same encoder, of the same size and classes, mixed with `latents`, whose
    weight is 1. All are normalized by the statistics of the mixture."""
    posterior: Literal["sample", "mean"] = "sample"
    """Train on posterior samples, drawn anew each epoch, or on means."""
    scaling: Scaling = "cache"
    """Normalize latents by the cache's statistics per channel, or by what is documented of the VAE
    that made them, such as a factor of 0.18215."""
    model: LatteOptions = field(default_factory=LatteOptions)
    """The transformer."""
    images: ImageOptions | None = None
    """Images trained on together with the clips; null: none."""
    init_from: str | None = None
    """Folder or hub id of a Latte of the same size to start from. Default: new weights."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Noise schedule and objective."""
    flow: FlowConfig | None = None
    """Rectified flow in place of diffusion; null: diffusion."""
    vae: str | None = None
    """The VAE that made the latents: decodes samples at every checkpoint. Default: no samples."""
    preview_sampler: SamplerConfig | None = None
    """How those samples are drawn. Default: 20 steps of DDIM, in a flow of Heun."""
    num_previews: Annotated[int, Ge(1), Le(1000), MAY_CHANGE] = 4
    """Their number."""
    held_out: Annotated[str | None, MAY_CHANGE] = None
    """Folder of the latents, by the same VAE, whose loss by quarter of the way to noise is measured
    every train.evaluate_every steps. Default: the training latents."""
    num_held_out_clips: Annotated[int, Ge(1), MAY_CHANGE] = 16
    """Their number, the first of the cache."""
    fvd: Annotated[SampleScoreConfig | None, MAY_CHANGE] = None
    """Also measure then how far a few samples, drawn like previews, are from real clips; needs the
    VAE. null: not."""
    activation_checkpointing: Annotated[bool, MAY_CHANGE] = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""
    compile: Annotated[bool, MAY_CHANGE] = False
    """Compile the blocks with torch.compile."""
    dry_run: Annotated[bool, MAY_CHANGE] = False
    """Measure one step, print the plan and end; nothing is written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_process(self.diffusion, self.flow)
        source_names(self.folders)
        if self.fvd is not None and (self.vae is None or self.train.evaluate_every is None):
            raise ValueError(
                "fvd: give vae too, which decodes the samples, and train.evaluate_every, the steps "
                "from one measurement to the next"
            )

    @property
    def folders(self) -> list[str]:
        """The caches of clips."""
        return [self.latents, *(source.folder for source in self.sources)]

    @property
    def sampler(self) -> SamplerConfig:
        """How previews are drawn."""
        method = "ddim" if self.flow is None else "heun"
        return self.preview_sampler or SamplerConfig(method=method, steps=20)

    def named(self) -> "TrainLatte":
        """The same with `{size}` replaced in train.folder."""
        size = f"{self.model.size.lower()}{self.model.patch_size}"
        folder = self.train.folder.replace("{size}", size)
        return replace(self, train=replace(self.train, folder=folder))

    @property
    def next_command(self) -> str:
        """Samples of the trained model."""
        return (
            f"python scripts/sample.py --latte {self.train.folder}/export "
            f"--vae {self.vae or 'VAE'} --out SAMPLES --num_clips 16"
        )


def run(config: TrainLatte) -> Path | None:
    """Train to the end, resuming what the run folder holds; returns the folder of the weights."""
    config = config.named()
    accelerator = training_accelerator(config.train)
    with nullcontext() if config.dry_run else lock_folder(config.train.folder, accelerator):
        return _train(config, accelerator)


def _train(config: TrainLatte, accelerator: Accelerator) -> Path | None:
    # Latents to train on, and held-out ones
    train = config.train
    parts, clips, joint, inputs = _latents(config)
    latents = parts[0]
    model_config = config.model.build(
        latents.latent_shape, len(latents.class_names), flow=config.flow is not None
    )
    held_out = LatentDataset(config.held_out or config.latents, "mean", seed=train.seed)
    check_alike(latents, held_out, classes=config.model.class_conditional)
    batches = training_batches(clips, train, accelerator)
    source = latents.manifest["source"]
    metadata = TrainingMetadata(
        encoder_hash=latents.encoder_hash,
        cache_hash=hash_of(parts),
        mean=tuple(latents.mean.tolist()),
        std=tuple(latents.std.tolist()),
        class_names=tuple(latents.class_names),
        frame_rate=latents.manifest["frame_rate"],
        frames=source["frames"],
        diffusion=config.diffusion,
        flow=config.flow,
    )

    # What decodes samples and what scores them
    vae = fvd = None
    if config.vae is not None:
        vae = load_vae(config.vae)
        latents.check_encoder(encoder_hash(vae))
        check_sampler(config.sampler, metadata.process, model_config)
    if config.fvd is not None:
        clip = source["frames"], source["stride"], source["height"], source["width"]
        fvd = SampleScore(config.fvd, clip)

    # The run, new or resumed
    model = initial_model(model_config, train.seed, config.init_from)
    if config.init_from is not None:
        inputs["init_from"] = Input(config.init_from, weights_hash(model))
    trainer = Trainer(config, train, accelerator, model, metadata.to_json(), inputs=inputs)
    prepare(trainer.model, recompute=config.activation_checkpointing, compile=config.compile)
    loss = LatteLoss(metadata.process, model_config, joint, accelerator)
    names = source_names(config.folders)
    if config.dry_run:
        at_once = train.micro_batch_size or trainer.local_batch_size
        rows = range(min(trainer.local_batch_size, 2 * at_once))
        batch = {name: values[: len(rows)] for name, values in next(batches(0)).items()}
        dry_run(
            trainer,
            batch | loss.draw(batch, train.seed, trainer.step, rows),
            loss,
            clips_in_data=sum(map(len, parts)),
            clips_per_step=train.global_batch_size,
            sources={
                name: (len(part), clips.shares[number] * train.global_batch_size)
                for number, (name, part) in enumerate(zip(names, parts, strict=True))
                if isinstance(clips, Mixture)
            },
        )
        return None

    # Scores of held-out clips and of samples, and samples to look at
    draw = partial(_draw, config, vae and vae.to(accelerator.device), metadata, accelerator)
    if fvd is not None:
        fvd.prepare(accelerator.device, trainer.folder.path / "features")

    def evaluate(model: nn.Module) -> dict[str, float]:
        count = min(config.num_held_out_clips, len(held_out))
        drawn = (held_out.draw(0, i) for i in range(count))
        normalized = ((latents.normalize(latent), label) for latent, label, _ in drawn)
        scores = loss.scores(model, normalized, train.seed)
        return scores | (fvd.score(partial(draw, model)) if fvd is not None else {})

    # Train
    return trainer.run(
        with_draws(batches, loss.draw, train.seed, accelerator.process_index),
        logging_sources(loss, names),
        None if vae is None else preview_of(draw, config.num_previews, metadata.frame_rate),
        evaluate,
        next_command=config.next_command,
    )


def _latents(
    config: TrainLatte,
) -> tuple[
    list[LatentDataset],
    LatentDataset | JointLatents | Mixture,
    JointBatch,
    dict[str, Input],
]:
    """The caches of clips; what is trained on, they or they with images behind them; how many
    images; and what the run is made from."""
    train, conditional = config.train, config.model.class_conditional
    parts = [
        LatentDataset(folder, config.posterior, seed=train.seed, scaling=config.scaling)
        for folder in config.folders
    ]
    if conditional and not parts[0].class_names:
        raise ValueError(f"{parts[0].folder}: has no classes; set class_conditional to false")
    weights = [1.0, *(source.weight for source in config.sources)]
    if config.sources:
        mix_latents(parts, weights, classes=conditional)
    for part in parts if conditional else ():
        check_labeled(part)
    names = ["latents", *(f"source {number}" for number in range(1, len(parts)))]
    inputs = {
        name: Input(folder, part.hash)
        for name, folder, part in zip(names, config.folders, parts, strict=True)
    }

    # Images behind each clip
    per_step = 0 if config.images is None else config.images.per_step
    joint = JointBatch(train.global_batch_size, per_step, parts[0].latent_shape[1])
    trained: list[LatentDataset] | list[JointLatents] = parts
    if config.images is not None:
        images = LatentDataset(config.images.latents, config.posterior, seed=train.seed)
        if conditional:
            check_labeled(images)
        trained = [JointLatents(part, images, joint.per_clip) for part in parts]
        inputs["images"] = Input(str(images.folder), images.hash)
    mixed = Mixture(dict(enumerate(trained)), weights) if config.sources else trained[0]
    return parts, mixed, joint, inputs


@torch.no_grad()
def _draw(
    config: TrainLatte,
    vae: VideoAutoencoder | None,
    metadata: TrainingMetadata,
    accelerator: Accelerator,
    model: nn.Module,
    numbers: range,
) -> Float[Tensor, "b 3 t h w"]:
    """Decoded samples of these numbers, from the same noise each time, of all classes in turn."""
    assert isinstance(model, Latte)
    assert vae is not None  # nothing is drawn without it
    classes = model.config.num_classes
    labels = None if classes is None else [i % classes for i in numbers]
    with accelerator.autocast():
        z = sample(model, metadata.process, config.sampler, indices=numbers, labels=labels, seed=0)
    size = vae.config.decoded_size(z, metadata.frames)
    clips = [vae.decode(part, size=size) for part in metadata.denormalize(z).split(1)]
    return torch.cat(clips).clamp(-1, 1)


if __name__ == "__main__":
    main(TrainLatte, run)
