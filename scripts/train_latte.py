"""Train Latte on cached latents."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from annotated_types import Ge, Le
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import default_collate

from common.cli import main
from common.config import MAY_CHANGE, Config
from common.output_folder import Input, lock_folder
from data.clips.loader import training_batches
from data.latents.dataset import (
    JointLatents,
    LatentDataset,
    Scaling,
    check_alike,
    check_labeled,
)
from data.video.encode import to_uint8, write_video
from engine.accelerator import training_accelerator
from engine.config import TrainConfig
from engine.dry_run import dry_run
from engine.optimization import Batch
from engine.prefetch import with_draws
from engine.train import Evaluate, Preview, Trainer
from eval.protocols.sample_fvd import SampleScore, SampleScoreConfig
from latte import Latte, LatteConfig
from latte.config import LatteOptions
from latte.diffusion import DiffusionConfig
from latte.diffusion_process import make_process
from latte.flow import FlowConfig
from latte.samplers import SamplerConfig, check_sampler, sample
from latte.training import JointBatch, LatteLoss, initial_model
from latte.training_metadata import TrainingMetadata
from vae import weights_hash
from vae.base import VideoAutoencoder
from vae.registry import load_vae, vae_hash

Draw = Callable[[nn.Module, range], Tensor]
"""Samples of a model, by their numbers: `b 3 t h w` in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Config):
    """Images of joint training."""

    latents: str
    """Folder of their latent cache, made with frames=1 by the same VAE."""
    per_step: Annotated[int, Ge(1)]
    """Images per step over all processes, spread evenly over the clips."""


@dataclass(frozen=True, kw_only=True)
class TrainLatte(Config):
    """Train Latte, unconditional or class-conditional, on the latents that cache_latents wrote.

    `{size}` in train.folder stands for the model's size and patch, such as xl2.
    """

    train: TrainConfig
    """Length, batch, optimizer, run folder."""
    latents: str
    """Folder of the latent cache."""
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
        if self.fvd is not None and (self.vae is None or self.train.evaluate_every is None):
            raise ValueError(
                "fvd: give vae too, which decodes the samples, and train.evaluate_every, the steps "
                "from one measurement to the next"
            )

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


def run(config: TrainLatte) -> Path | None:
    """Train to the end, resuming what the run folder holds; returns the folder of the weights."""
    config = config.named()
    accelerator = training_accelerator(config.train)
    with nullcontext() if config.dry_run else lock_folder(config.train.folder, accelerator):
        return _train(config, accelerator)


def _train(config: TrainLatte, accelerator: Accelerator) -> Path | None:
    train = config.train
    latents = LatentDataset(
        config.latents, config.posterior, seed=train.seed, scaling=config.scaling
    )
    if config.model.class_conditional and not latents.class_names:
        raise ValueError(f"{latents.folder}: has no classes; set class_conditional to false")
    classes, flow = len(latents.class_names), config.flow is not None
    model_config = config.model.build(latents.latent_shape, classes, flow=flow)
    vae = _vae(config, latents, model_config)
    held_out = _held_out(config, latents)
    clips = _joint(config, latents)
    fvd = None if config.fvd is None else SampleScore(config.fvd, _clip(latents))
    batches = training_batches(clips, train, accelerator)
    metadata = _training_metadata(config, latents)
    model = initial_model(model_config, train.seed, config.init_from)
    inputs = {"latents": Input(config.latents, latents.hash)}
    if isinstance(clips, JointLatents):
        inputs["images"] = Input(str(clips.images.folder), clips.images.hash)
    if config.init_from is not None:
        inputs["init_from"] = Input(config.init_from, weights_hash(model))
    trainer = Trainer(config, train, accelerator, model, metadata.to_json(), inputs=inputs)
    _prepare(config, trainer.model)
    images = 0 if config.images is None else config.images.per_step
    joint = JointBatch(train.global_batch_size, images, model_config.num_frames)
    loss = LatteLoss(metadata.process, model_config, joint, accelerator)
    batches = with_draws(batches, loss.draw, train.seed, accelerator.process_index)
    if config.dry_run:
        batch = _some_clips(train, trainer.local_batch_size, clips)
        positions = range(len(batch["latent"]))
        dry_run(
            trainer,
            batch | loss.draw(batch, train.seed, trainer.step, positions),
            loss,
            clips_in_data=len(latents),
            clips_per_step=train.global_batch_size,
        )
        return None
    evaluate, preview = _evaluate(config, latents, held_out, loss), None
    if vae is not None:
        draw = _drawing(config, vae.to(accelerator.device), metadata, accelerator)
        preview = _preview(config, draw, metadata)
        if fvd is not None:
            fvd.prepare(accelerator.device, trainer.folder.path / "features")
            evaluate = _with_fvd(evaluate, fvd, draw)
    following = (
        f"python scripts/sample.py --latte {train.folder}/export --vae {config.vae or 'VAE'} "
        "--out SAMPLES --num_clips 16"
    )
    return trainer.run(batches, loss, preview, evaluate, next_command=following)


def _vae(config: TrainLatte, latents: LatentDataset, model: LatteConfig) -> VideoAutoencoder | None:
    """The decoder of previews, once it and the sampler are known to fit."""
    if config.vae is None:
        return None
    vae = load_vae(config.vae)
    latents.check_vae(vae_hash(vae))
    check_sampler(config.sampler, make_process(config.diffusion, config.flow), model)
    return vae


def _held_out(config: TrainLatte, latents: LatentDataset) -> LatentDataset:
    held_out = LatentDataset(config.held_out or config.latents, "mean", seed=config.train.seed)
    check_alike(latents, held_out, classes=config.model.class_conditional)
    return held_out


def _joint(config: TrainLatte, latents: LatentDataset) -> LatentDataset | JointLatents:
    """What is trained on: the clips, with images behind them or not."""
    caches, clips = [latents], latents
    if config.images is not None:
        images = LatentDataset(config.images.latents, config.posterior, seed=config.train.seed)
        per_clip = JointBatch(config.train.global_batch_size, config.images.per_step, 1).per_clip
        caches, clips = [latents, images], JointLatents(latents, images, per_clip)
    if config.model.class_conditional:
        for cache in caches:
            check_labeled(cache)
    return clips


def _clip(latents: LatentDataset) -> tuple[int, int, int, int]:
    """Frames, stride, height and width of the clips behind the latents."""
    source = latents.manifest["source"]
    return source["frames"], source["stride"], source["height"], source["width"]


def _training_metadata(config: TrainLatte, latents: LatentDataset) -> TrainingMetadata:
    return TrainingMetadata(
        vae_hash=latents.vae_hash,
        cache_hash=latents.hash,
        mean=tuple(latents.mean.tolist()),
        std=tuple(latents.std.tolist()),
        class_names=tuple(latents.class_names),
        frame_rate=latents.manifest["frame_rate"],
        frames=latents.manifest["source"]["frames"],
        diffusion=config.diffusion,
        flow=config.flow,
    )


def _prepare(config: TrainLatte, model: nn.Module) -> None:
    """Turn on what saves memory or time. Weights and their names stay."""
    assert isinstance(model, Latte)
    model.activation_checkpointing = config.activation_checkpointing
    if config.compile:
        for block in model.blocks:
            block.compile(dynamic=False)


def _some_clips(train: TrainConfig, local: int, clips: LatentDataset | JointLatents) -> Batch:
    """As many as a process takes in a step, of at most two micro-batches."""
    count = min(local, 2 * (train.micro_batch_size or local))
    batch = default_collate([clips[0, i] for i in range(count)])
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}


def _evaluate(
    config: TrainLatte, latents: LatentDataset, held_out: LatentDataset, loss: LatteLoss
) -> Evaluate:
    """The loss by quarter of the way from data to noise."""
    count = min(config.num_held_out_clips, len(held_out))

    def scores(model: nn.Module) -> dict[str, float]:
        rows = []
        for i in range(count):
            latent, label, _ = held_out.draw(0, i)
            x0 = latents.normalize(latent)
            rows.append(loss.quarters(model, x0, label, config.train.seed, i))
        values = torch.stack(rows).mean(dim=0)
        quarters = {f"mse_quarter_{i + 1}": value for i, value in enumerate(values.tolist())}
        return {"mse": values.mean().item(), **quarters}

    return scores


def _drawing(
    config: TrainLatte, vae: VideoAutoencoder, metadata: TrainingMetadata, accelerator: Accelerator
) -> Draw:
    """Decoded samples, from the same noise each time, of all classes in turn."""

    @torch.no_grad()
    def draw(model: nn.Module, numbers: range) -> Tensor:
        assert isinstance(model, Latte)
        classes = model.config.num_classes
        labels = None if classes is None else [i % classes for i in numbers]
        with accelerator.autocast():
            z = sample(
                model, metadata.process, config.sampler, indices=numbers, labels=labels, seed=0
            )
        size = vae.config.decoded_size(z, metadata.frames)
        clips = [vae.decode(part, size=size) for part in metadata.denormalize(z).split(1)]
        return torch.cat(clips).clamp(-1, 1)

    return draw


def _preview(config: TrainLatte, draw: Draw, metadata: TrainingMetadata) -> Preview:
    """Samples side by side: above by the averaged weights, below by the raw ones."""

    def write(averaged: nn.Module, raw: nn.Module, step: int, file: Path) -> None:
        clips = [draw(model, range(config.num_previews)).cpu() for model in (averaged, raw)]
        frames = rearrange(clips, "j i c t h w -> c t (j h) (i w)")
        write_video(file, to_uint8(frames), fps=metadata.frame_rate)

    return write


def _with_fvd(evaluate: Evaluate, fvd: SampleScore, draw: Draw) -> Evaluate:
    """The same scores, and the distance of samples to real clips."""
    return lambda model: evaluate(model) | fvd.score(lambda numbers: draw(model, numbers))


if __name__ == "__main__":
    main(TrainLatte, run)
