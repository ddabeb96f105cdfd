"""Train an image VAE, a video VAE inflated from one, or either with a discriminator."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from annotated_types import Ge, Le
from torch import nn

from common.cli import main
from common.config import MAY_CHANGE, Config
from common.output_folder import Input, lock_folder
from common.perceptual import check_size
from common.pixels import to_float
from common.seeding import fold
from data.clips.buckets import Bucket, BucketClips, BucketConfig
from data.clips.dataset import ClipConfig, ClipDataset
from data.clips.loader import training_batches
from data.clips.options import ClipOptions
from data.clips.stream import StreamConfig, training_stream
from data.video.encode import write_video
from engine.accelerator import training_accelerator
from engine.config import TrainConfig
from engine.dry_run import dry_run, measured
from engine.optimization import Batch
from engine.prefetch import BatchSource, with_draws
from engine.train import Evaluate, Preview, Trainer
from engine.watch import show_pictures
from eval.features.metric_networks import NetworkConfig
from eval.protocols.held_out import HeldOut, side_by_side
from vae import VAEConfig, weights_hash
from vae.adversarial import AdversarialConfig, AdversarialLoss
from vae.base import VideoAutoencoder
from vae.comparators.base import ComparatorConfig
from vae.config import PRESETS
from vae.discriminator import Discriminator
from vae.losses import VAELoss, VAELossConfig
from vae.memory import free_memory
from vae.registry import OTHERS, comparator_config
from vae.regularizers import RegularizerConfig, Regularizers
from vae.training import StepLoss, initial_model, prepare
from vae.visual import compared

log = logging.getLogger(__name__)

FULL_DIM = VAEConfig().dim
Size = tuple[int, int, int]  # frames, height, width


@dataclass(frozen=True, kw_only=True)
class TrainVAE(Config):
    """Train IV-VAE on packed videos: the image VAE, the video VAE inflated from it, the GAN stage.

    `{model}` in train.folder and init_from stands for the row and z_dim, such as ivvae_z16.
    """

    train: TrainConfig
    """Length, batch, optimizer, run folder."""
    data: ClipConfig | None = None
    """Training clips, from indexed shards."""
    stream: StreamConfig | None = None
    """Training clips from shards that are read from start to end, in place of `data`: endless, and
    a run that is resumed sees other clips than one that never stopped."""
    buckets: BucketConfig | None = None
    """Sizes of clips to mix, one per step; they replace frames, height and width of `data` and
    train.global_batch_size. null: one size."""
    model: VAEConfig = field(default_factory=VAEConfig)
    """The video VAE. The image stage trains the image VAE that it is inflated from."""
    architecture: str = "ivvae"
    """Row of the paper's ablation, a preset of VAEConfig, which changes `model`; a width relative
    to the released model's is kept relative. Or another VAE to train in its place: cv_vae, od_vae,
    od_vae_gcconv, opensora_v12, cogvideox or wan, with z_dim and num_blocks of `model`, as much
    narrower than the published one as `model` is than the released IV-VAE."""
    stage: Literal["image", "video"] = "video"
    """image: one branch, on single frames; video: the whole model."""
    init_from: str | None = None
    """Folder or hub id of weights to start from: an image VAE is inflated (Eq. 3 and 4 of the
    supplement), a video VAE continued. Default: random weights."""
    loss: VAELossConfig = field(default_factory=VAELossConfig)
    """Weights of Eq. 5."""
    adversarial: AdversarialConfig | None = None
    """The GAN term of Eq. 5 and its discriminator; null: none."""
    regularizers: RegularizerConfig = field(default_factory=RegularizerConfig)
    """Terms for latents that are easier to generate, all off by default."""
    held_out: Annotated[ClipConfig | None, MAY_CHANGE] = None
    """Held-out clips, scored every train.evaluate_every steps; the middle of each video is taken.
    """
    num_held_out_clips: Annotated[int, Ge(1), MAY_CHANGE] = 16
    """Their number, the first of the data set."""
    metric_networks: Annotated[NetworkConfig, MAY_CHANGE] = NetworkConfig()  # noqa: RUF009 (frozen)
    """Networks for LPIPS and rFVD of held-out clips, besides PSNR and SSIM."""
    num_previews: Annotated[int, Ge(0), Le(1000), MAY_CHANGE] = 4
    """Clips shown side by side at every checkpoint, held-out ones if there are any; 0 for none. A
    stream has none to show."""
    activation_checkpointing: Annotated[bool, MAY_CHANGE] = False
    """Recompute activations in the backward pass: much less memory, about a third more time."""
    compile: Annotated[bool, MAY_CHANGE] = False
    """Compile residual and attention blocks with torch.compile."""
    dry_run: Annotated[bool, MAY_CHANGE] = False
    """Measure one step, print the plan and end; nothing is written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture not in (*PRESETS, *OTHERS):
            raise ValueError(
                f"architecture={self.architecture!r}: use one of {', '.join((*PRESETS, *OTHERS))}"
            )
        if self.architecture in OTHERS and self.stage == "image":
            raise ValueError(
                f"architecture={self.architecture}: has no image stage, as nothing is "
                "inflated into it: set stage: video, and init_from: null or weights of its own kind"
            )
        if (self.data is None) == (self.stream is None):
            raise ValueError("set either data or stream, where training clips come from; null: not")
        if self.buckets is not None and self.stream is not None:
            raise ValueError("buckets need data, whose videos' sizes are known: a stream has one")
        sizes = [*self.sizes, *([_size(self.held_out)] if self.held_out else [])]
        for frames, height, width in sizes:
            if self.stage == "image" and frames != 1:
                raise ValueError(
                    f"stage=image trains on single frames: set data.frames=1, got {frames}"
                )
            self.vae_config.latent_shape(frames, height, width)
            if self.loss.perceptual != "none":
                check_size(self.loss.perceptual, height, width)
        gan = self.adversarial
        for size in self.sizes:
            main, least = self.regularizers.check(self.vae_config, size)
            if self.loss.perceptual != "none":
                check_size(self.loss.perceptual, *least[1:])
            if gan is not None:
                gan.discriminator.check(*main[1:])
        if gan is not None:
            if gan.start_step >= self.train.steps:
                raise ValueError(
                    f"adversarial.start_step={gan.start_step} is not before the end of the run at "
                    f"train.steps={self.train.steps}"
                )
            if self.train.precision == "fp16":
                raise ValueError("precision=fp16 has one loss scale, a GAN two losses: use bf16")
        if self.train.evaluate_every is not None and self.held_out is None:
            raise ValueError("train.evaluate_every is set, but there is no data in held_out")

    def fixed_fields(self) -> frozenset[str]:
        """The course of the discriminator's cosine schedule depends on the steps, too."""
        gan = self.adversarial
        cosine = gan is not None and gan.optimizer.schedule == "cosine"
        return frozenset({"train.steps"} if cosine else ())

    @property
    def sizes(self) -> list[Size]:
        """Frames, height and width of the training clips."""
        one = self.data or self.stream
        assert one is not None  # __post_init__ has seen to it
        return [_size(clips) for clips in (self.buckets.buckets if self.buckets else [one])]

    @property
    def batches(self) -> list[int]:
        """Clips per step over all processes, of each size."""
        if self.buckets is None:
            return [self.train.global_batch_size]
        return [self.buckets.batch_size(bucket) for bucket in self.buckets.buckets]

    @property
    def clips_per_step(self) -> float:
        """Clips per step over all processes, on average."""
        weights = [bucket.weight for bucket in self.buckets.buckets] if self.buckets else [1.0]
        return sum(map(prod, zip(weights, self.batches, strict=True))) / sum(weights)

    @property
    def video_config(self) -> VAEConfig | ComparatorConfig:
        """The video VAE: `model` as the row changes it, or a comparator of its size."""
        if self.architecture in OTHERS:
            return comparator_config(self.architecture, self.model)
        changes = dict(PRESETS[self.architecture])
        changes["dim"] = self.model.dim * changes.get("dim", FULL_DIM) // FULL_DIM
        return replace(self.model, **changes)

    @property
    def vae_config(self) -> VAEConfig | ComparatorConfig:
        """Of the model that is trained."""
        config = self.video_config
        if self.stage == "image" and isinstance(config, VAEConfig):
            return config.image()
        return config

    def named(self) -> "TrainVAE":
        """The same with `{model}` replaced in the folders."""
        name = f"{self.architecture}_z{self.model.z_dim}"
        source = None if self.init_from is None else self.init_from.replace("{model}", name)
        train = replace(self.train, folder=self.train.folder.replace("{model}", name))
        return replace(self, train=train, init_from=source)


def run(config: TrainVAE) -> Path | None:
    """Train to the end, resuming what the run folder holds; returns the folder of the weights."""
    config = config.named()
    accelerator = training_accelerator(config.train)
    with nullcontext() if config.dry_run else lock_folder(config.train.folder, accelerator):
        return _train(config, accelerator)


def _train(config: TrainVAE, accelerator: Accelerator) -> Path | None:
    train = config.train
    batches, clips = _training_data(config, accelerator)
    held_out = None if config.held_out is None else _fixed_clips(config.held_out)
    evaluate = None if held_out is None else _evaluate(config, held_out)
    loss = VAELoss(config.loss).to(accelerator.device)
    torch.manual_seed(fold(train.seed, "weights"))
    model = initial_model(
        config.video_config, image=config.stage == "image", source=config.init_from
    )
    regularizers = Regularizers(config.regularizers, model)
    gan = None
    if config.adversarial is not None:
        torch.manual_seed(fold(train.seed, "discriminator"))
        discriminator = Discriminator(config.adversarial.discriminator)
        log.info("discriminator: all weights are new")
        gan = AdversarialLoss(config.adversarial, loss, discriminator, accelerator)
    trainer = Trainer(
        config,
        train,
        accelerator,
        model,
        discriminator=None if gan is None else gan.training,
        states={} if gan is None else {"adversarial": gan},
        inputs=_inputs(config, clips, model),
    )
    prepare(
        trainer.model,
        recompute=config.activation_checkpointing,
        compile=config.compile,
    )

    step_loss = StepLoss(loss, model, accelerator, gan, regularizers)
    batches = with_draws(batches, step_loss.draw, train.seed, accelerator.process_index)
    blank = _blank(config, accelerator.num_processes)
    blank |= step_loss.draw(blank, train.seed, trainer.step, range(len(blank["video"])))
    if config.dry_run:
        for line in dry_run(
            trainer,
            blank,
            step_loss,
            clips_in_data=len(clips) if clips else None,
            clips_per_step=config.clips_per_step,
            free=free_memory(accelerator.device),
        ):
            accelerator.print(line, flush=True)
        return None
    if gan is not None:
        memory = trainer.measure_step_memory(blank, step_loss)
        log.info("%s: %s", train.folder, measured(trainer, memory))
    shown = held_out or (clips.sets[0] if isinstance(clips, BucketClips) else clips)
    preview = (
        _preview(config.num_previews, shown, accelerator) if config.num_previews and shown else None
    )
    return trainer.run(batches, step_loss, preview, evaluate, next_command=_next_command(config))


def _training_data(
    config: TrainVAE, accelerator: Accelerator
) -> tuple[BatchSource, ClipDataset | BucketClips | None]:
    """Batches from any step on, and the clips that they are made of; None for a stream."""
    train = config.train
    if config.stream is not None:
        return training_stream(config.stream, train, accelerator), None
    assert config.data is not None
    clips = (
        ClipDataset(config.data, seed=train.seed)
        if config.buckets is None
        else BucketClips(config.data, config.buckets, seed=train.seed)
    )
    return training_batches(clips, train, accelerator), clips


def _inputs(
    config: TrainVAE, clips: ClipDataset | BucketClips | None, model: nn.Module
) -> dict[str, Input]:
    """What the weights come from; a stream's shards are not known before they are read."""
    inputs = {}
    if config.data is not None and clips is not None:
        inputs["data"] = Input(config.data.folder, clips.hash)
    if config.init_from is not None:
        inputs["init_from"] = Input(config.init_from, weights_hash(model))
    return inputs


def _next_command(config: TrainVAE) -> str:
    """The video VAE from the image VAE; latents by the video VAE."""
    export = f"{config.train.folder}/export"
    if config.stage == "image":
        return f"python scripts/train_vae.py --config VIDEO_STAGE.yaml --init_from {export}"
    vae = f"{config.architecture}:{export}" if config.architecture in OTHERS else export
    frames, height, width = config.sizes[0]
    data = "SHARDS" if config.data is None else config.data.folder
    return (
        f"python scripts/cache_latents.py --vae {vae} --data {data} --frames {frames} "
        f"--height {height} --width {width} --out LATENTS"
    )


def _size(clips: ClipOptions | Bucket) -> Size:
    return clips.frames, clips.height, clips.width


def _blank(config: TrainVAE, processes: int) -> Batch:
    """Clips of the size and number that take most memory, of at most two micro-batches."""
    micro, shapes = config.train.micro_batch_size, []
    for size, batch in zip(config.sizes, config.batches, strict=True):
        local = batch // processes
        at_once = min(local, micro or local)
        shapes.append((at_once * prod(size), min(local, 2 * at_once), *size))
    _, clips, frames, height, width = max(shapes)
    return {"video": torch.zeros(clips, 3, frames, height, width, dtype=torch.uint8)}


def _fixed_clips(config: ClipConfig) -> ClipDataset:
    return ClipDataset(
        replace(config, start="center", crop="center", max_zoom=1.0, flip=False), seed=0
    )


def _evaluate(config: TrainVAE, clips: ClipDataset) -> Evaluate | None:
    """Scores of held-out clips, if they are wanted."""
    if config.train.evaluate_every is None:
        return None
    group = config.vae_config.temporal_ratio
    held_out = HeldOut(clips, config.num_held_out_clips, group, config.metric_networks)

    def scores(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, VideoAutoencoder)
        return held_out.scores(model.reconstruct, next(model.parameters()).device)

    return scores


def _preview(count: int, dataset: ClipDataset, accelerator: Accelerator) -> Preview:
    """Clips side by side, in a file and where the log goes; top to bottom the source, its
    reconstruction, and with two branches the frames that the decoder made and did not select."""
    count = min(count, len(dataset))

    def write(model: nn.Module, raw: nn.Module, step: int, folder: Path) -> None:
        assert isinstance(model, VideoAutoencoder)
        device = next(model.parameters()).device
        clips = (to_float(dataset[(0, i)]["video"][None].to(device)) for i in range(count))
        frames = side_by_side(compared(model, clip) for clip in clips)
        write_video(folder / f"step-{step:08d}.mp4", frames, dataset.frame_rate)
        show_pictures(accelerator, "preview", frames[:: max(1, len(frames) - 1)], step)

    return write


if __name__ == "__main__":
    main(TrainVAE, run)
