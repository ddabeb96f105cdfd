"""Train Latte on cached latents."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from data.encode import to_uint8, write_video
from data.latent_joint import JointLatents
from data.latents import LatentDataset
from data.loader import training_batches
from engine.accelerator import training_accelerator
from engine.cli import main
from engine.config import TrainConfig
from engine.plan import plan
from engine.player import Batch
from engine.seeding import fold
from engine.train import Evaluate, Preview, Trainer
from latte import Latte, LatteConfig
from latte.blocks import Block
from latte.diffusion import DiffusionConfig
from latte.flow import FlowConfig
from latte.joint import JointBatch
from latte.notes import LatentNotes
from latte.options import LatteOptions
from latte.process import make_process
from latte.samplers import SamplerConfig, check_sampler, sample
from latte.training import LatteLoss
from vae import VideoVAE, weights_hash
from vae.memory import free_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Images of joint training."""

    latents: str
    """Folder of their latent cache, made with frames=1 by the same VAE."""
    per_step: int
    """Images per step over all processes, spread evenly over the clips."""

    def __post_init__(self) -> None:
        if self.per_step < 1:
            raise ValueError(f"images.per_step={self.per_step} must be at least 1; null: no images")


@dataclass(frozen=True, kw_only=True)
class TrainLatte:
    """Train Latte, unconditional or class-conditional, on the latents that cache_latents wrote."""

    train: TrainConfig
    """Length, batch, optimiser, run folder."""
    latents: str
    """Folder of the latent cache."""
    posterior: Literal["sample", "mean"] = "sample"
    """Train on posterior samples, drawn anew each epoch, or on means."""
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
    preview: SamplerConfig | None = None
    """How those samples are drawn. Default: 20 steps of DDIM, in a flow of Heun."""
    previews: int = 4
    """Their number."""
    held_out: str | None = None
    """Folder of the latents, by the same VAE, whose loss by quarter of the way to noise is measured
    every train.evaluate_every steps. Default: the training latents."""
    held_out_clips: int = 16
    """Their number, the first of the cache."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the blocks with torch.compile."""
    dry_run: bool = False
    """Measure one step, print the plan and end; nothing is written."""

    def __post_init__(self) -> None:
        make_process(self.diffusion, self.flow)
        if self.previews < 1 or self.held_out_clips < 1:
            raise ValueError(
                f"previews={self.previews} and held_out_clips={self.held_out_clips} must be at "
                "least 1"
            )

    @property
    def sampler(self) -> SamplerConfig:
        """How previews are drawn."""
        method = "ddim" if self.flow is None else "heun"
        return self.preview or SamplerConfig(method=method, steps=20)


def run(config: TrainLatte) -> Path | None:
    """Train to the end, resuming what the run folder holds; returns the folder of the weights."""
    train = config.train
    latents = LatentDataset(config.latents, config.posterior, seed=train.seed)
    if config.model.class_conditional and not latents.class_names:
        raise ValueError(f"{latents.folder}: has no classes; set class_conditional to false")
    classes, flow = len(latents.class_names), config.flow is not None
    model_config = config.model.build(latents.latent_shape, classes, flow=flow)
    vae = _vae(config, latents, model_config)
    held_out = _held_out(config, latents)
    clips = _joint(config, latents) or latents
    _check_labels(model_config, clips)
    accelerator = training_accelerator(train)
    batches = training_batches(clips, train, accelerator)
    notes = _notes(config, latents)
    model = _initial_model(config, model_config)
    trainer = Trainer(config, train, accelerator, model, notes.to_json())
    _check_cache(trainer, notes)
    _prepare(config, trainer.players.model)
    images = 0 if config.images is None else config.images.per_step
    joint = JointBatch(train.global_batch, images, model_config.num_frames)
    loss = LatteLoss(notes.process, model_config, joint, accelerator)
    if config.dry_run:
        for line in plan(
            trainer,
            _some_clips(train, trainer.local_batch, clips),
            loss,
            clips_in_data=len(latents),
            clips_per_step=train.global_batch,
            free=free_memory(accelerator.device),
        ):
            accelerator.print(line, flush=True)
        return None
    preview = None
    if vae is not None:
        preview = _preview(config, vae.to(accelerator.device), notes)
    return trainer.run(batches, loss, preview, _evaluate(config, latents, held_out, loss))


def _vae(config: TrainLatte, latents: LatentDataset, model: LatteConfig) -> VideoVAE | None:
    """The decoder of previews, once it and the sampler are known to fit."""
    if config.vae is None:
        return None
    vae = VideoVAE.from_pretrained(config.vae)
    latents.check_vae(weights_hash(vae))
    check_sampler(config.sampler, make_process(config.diffusion, config.flow), model)
    return vae


def _held_out(config: TrainLatte, latents: LatentDataset) -> LatentDataset:
    held_out = LatentDataset(config.held_out or config.latents, "mean", seed=config.train.seed)
    held_out.check_vae(latents.vae_hash)
    if held_out.latent_shape != latents.latent_shape:
        raise ValueError(
            f"{held_out.folder}: latents of shape {held_out.latent_shape}, but those of "
            f"{latents.folder} are {latents.latent_shape}"
        )
    if config.model.class_conditional and held_out.class_names != latents.class_names:
        raise ValueError(f"{held_out.folder}: its classes are not those of {latents.folder}")
    return held_out


def _joint(config: TrainLatte, latents: LatentDataset) -> JointLatents | None:
    if config.images is None:
        return None
    images = LatentDataset(config.images.latents, config.posterior, seed=config.train.seed)
    per_clip = JointBatch(config.train.global_batch, config.images.per_step, 1).per_clip
    return JointLatents(latents, images, per_clip)


def _check_labels(model: LatteConfig, dataset: LatentDataset | JointLatents) -> None:
    """Refuse items without a label before the first of them comes up in a batch."""
    if model.num_classes is None:
        return
    caches = [dataset] if isinstance(dataset, LatentDataset) else [dataset.videos, dataset.images]
    for cache in caches:
        without = sum(cache.label(i) < 0 for i in range(len(cache)))
        if without:
            raise ValueError(
                f"{cache.folder}: {without} of {len(cache)} latents have no label; a "
                "class-conditional model needs one for each"
            )


def _notes(config: TrainLatte, latents: LatentDataset) -> LatentNotes:
    return LatentNotes(
        vae_hash=latents.vae_hash,
        cache_hash=latents.hash,
        mean=tuple(latents.mean.tolist()),
        std=tuple(latents.std.tolist()),
        class_names=tuple(latents.class_names),
        frame_rate=latents.manifest["frame_rate"],
        diffusion=config.diffusion,
        flow=config.flow,
    )


def _initial_model(config: TrainLatte, model_config: LatteConfig) -> Latte:
    torch.manual_seed(fold(config.train.seed, "weights"))
    model = Latte(model_config)
    if config.init_from is None:
        return model
    source = Latte.from_pretrained(config.init_from)
    if replace(source.config, class_dropout=model_config.class_dropout) != model_config:
        raise ValueError(
            f"{config.init_from}: {source.config} is of another size than {model_config}. "
            "Start from a model of the same size, or change model and latents."
        )
    model.load_state_dict(source.state_dict())
    log.info("%s: all weights loaded", config.init_from)
    return model.train()


def _check_cache(trainer: Trainer, notes: LatentNotes) -> None:
    """Refuse to go on with latents that were cached anew since the last checkpoint."""
    checkpoint = trainer.folder.latest()
    if checkpoint is None:
        return
    before = LatentNotes.load(checkpoint / "ema")
    if before.cache_hash != notes.cache_hash:
        raise ValueError(
            f"{trainer.folder.path}: was trained on latents of the manifest "
            f"{before.cache_hash[:12]}, but they were cached anew since and are now "
            f"{notes.cache_hash[:12]}. Restore them, or train in another folder."
        )


def _prepare(config: TrainLatte, model: nn.Module) -> None:
    """Turn on what saves memory or time. Weights and their names stay."""
    assert isinstance(model, Latte)
    model.activation_checkpointing = config.activation_checkpointing
    if config.compile:
        for module in model.modules():
            if isinstance(module, Block):
                module.compile(dynamic=False)


def _some_clips(train: TrainConfig, local: int, clips: LatentDataset | JointLatents) -> Batch:
    """As many as a process takes in a step, of at most two micro-batches."""
    count = min(local, 2 * (train.micro_batch or local))
    batch = default_collate([clips[0, i] for i in range(count)])
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}


def _evaluate(
    config: TrainLatte, latents: LatentDataset, held_out: LatentDataset, loss: LatteLoss
) -> Evaluate:
    """The loss by quarter of the way from data to noise."""
    count = min(config.held_out_clips, len(held_out))

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


def _preview(config: TrainLatte, vae: VideoVAE, notes: LatentNotes) -> Preview:
    """Decoded samples, from the same noise each time, of the first classes: above by the averaged
    weights, below by the raw ones."""

    @torch.no_grad()
    def write(averaged: nn.Module, raw: nn.Module, step: int, folder: Path) -> None:
        rows = []
        for model in (averaged, raw):
            assert isinstance(model, Latte)
            classes = model.config.num_classes
            indices = range(config.previews)
            labels = None if classes is None else [i % classes for i in indices]
            z = sample(model, notes.process, config.sampler, indices=indices, labels=labels, seed=0)
            clips = [vae.decode(part).clamp(-1, 1)[0] for part in notes.denormalize(z).split(1)]
            rows.append(torch.cat(clips, dim=-1).cpu())  # c t h (i w)
        path = folder / f"step-{step:08d}.mp4"
        write_video(path, to_uint8(torch.cat(rows, dim=-2)), fps=notes.frame_rate)

    return write


if __name__ == "__main__":
    main(TrainLatte, run)
