"""Train an image VAE, a video VAE inflated from one, or either with a discriminator."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from annotated_types import Ge, Le
from torch import nn

from common.cli import main
from common.config import MAY_CHANGE
from common.output_folder import Input, lock_folder
from common.perceptual import check_size
from common.seeding import fold
from data.clips.dataset import ClipConfig
from data.clips.mixture import logging_sources, source_names
from data.clips.training import ClipTraining
from engine.accelerator import training_accelerator
from engine.dry_run import dry_run, measured
from engine.prefetch import with_draws
from engine.train import Evaluate, Trainer
from eval.features.metric_networks import NetworkConfig
from eval.protocols.held_out import HeldOut, fixed_clips, preview_of
from vae import VAEConfig, weights_hash
from vae.adversarial import AdversarialConfig, AdversarialLoss
from vae.base import VideoAutoencoder
from vae.comparators.base import ComparatorConfig
from vae.discriminator import Discriminator
from vae.losses import VAELoss, VAELossConfig
from vae.registry import OTHERS, architecture_config
from vae.regularizers import RegularizerConfig, Regularizers
from vae.training import StepLoss, initial_model, prepare, train_parts
from vae.visual import compared

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainVAE(ClipTraining):
    """Train IV-VAE on packed videos: the image VAE, the video VAE inflated from it, the GAN stage.

    `{model}` in train.folder and init_from stands for the row and z_dim, such as ivvae_z16.
    """

    model: VAEConfig = field(default_factory=VAEConfig)
    """The video VAE. The image stage trains the image VAE that it is inflated from."""
    architecture: str = "ivvae"
    """Row of the paper's ablation, a preset of VAEConfig, which changes `model`; a width relative
    to the released model's is kept relative. Or another VAE to train in its place: cv_vae, od_vae,
    od_vae_gcconv, opensora_v12, cogvideox, wan, ... (docs/reproduce.md), with z_dim and num_blocks
    of `model`, as much narrower than the published one as `model` is than the released IV-VAE."""
    stage: Literal["image", "video"] = "video"
    """image: one branch, on single frames; video: the whole model."""
    init_from: str | None = None
    """Folder or hub id of weights to start from: an image VAE is inflated (Eq. 3 and 4 of the
    supplement), a video VAE continued. Default: random weights."""
    train_only: list[str] = field(default_factory=list)
    """Parts to train while all others keep their bits: encoder, decoder, or modules by name, such
    as decoder.head. With the decoder alone, latents and what is trained on them stay valid.
    Default: all."""
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
        _ = self.video_config  # refuses an unknown architecture
        if self.architecture in OTHERS and self.stage == "image":
            raise ValueError(
                f"architecture={self.architecture}: has no image stage, as nothing is "
                "inflated into it: set stage: video, and init_from: null or weights of its own kind"
            )
        if self.train_only and self.init_from is None:
            raise ValueError(
                f"train_only={', '.join(self.train_only)}: the other parts would stay random: set "
                "init_from"
            )
        held_out = [self.held_out.size] if self.held_out else []
        for frames, height, width in [*self.sizes, *held_out]:
            if self.stage == "image" and frames != 1:
                raise ValueError(
                    f"stage=image trains on single frames: set data.frames=1, got {frames}"
                )
            self.vae_config.latent_shape(frames, height, width)
            if self.loss.perceptual != "none":
                check_size(self.loss.perceptual, height, width)
        reconstructed = []
        for size in self.sizes:
            main, least = self.regularizers.check(self.vae_config, size)
            reconstructed.append(main)
            if self.loss.perceptual != "none":
                check_size(self.loss.perceptual, *least[1:])
        if self.adversarial is not None:
            self.adversarial.check(self.train, reconstructed)
        if self.train.evaluate_every is not None and self.held_out is None:
            raise ValueError("train.evaluate_every is set, but there is no data in held_out")

    def fixed_fields(self) -> frozenset[str]:
        """The course of the discriminator's cosine schedule depends on the steps, too."""
        gan = self.adversarial
        cosine = gan is not None and gan.optimizer.schedule == "cosine"
        return frozenset({"train.steps"} if cosine else ())

    @property
    def video_config(self) -> VAEConfig | ComparatorConfig:
        """The video VAE: `model` as the row changes it, or a comparator of its size."""
        return architecture_config(self.architecture, self.model)

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

    @property
    def next_command(self) -> str:
        """The video VAE from the image VAE; latents by the video VAE."""
        export = f"{self.train.folder}/export"
        if self.stage == "image":
            return f"python scripts/train_vae.py --config VIDEO_STAGE.yaml --init_from {export}"
        vae = f"{self.architecture}:{export}" if self.architecture in OTHERS else export
        if self.train_only == ["decoder"]:  # the latents there are stay valid
            return (
                f"python scripts/sample.py --latte LATTE --vae {vae} --out SAMPLES --num_clips 16"
            )
        frames, height, width = self.sizes[0]
        data = "SHARDS" if self.data is None else self.data.folder
        return (
            f"python scripts/cache_latents.py --vae {vae} --data.folder {data} "
            f"--data.frames {frames} --data.height {height} --data.width {width} --out LATENTS"
        )


def run(config: TrainVAE) -> Path | None:
    """Train to the end, resuming what the run folder holds; returns the folder of the weights."""
    config = config.named()
    accelerator = training_accelerator(config.train)
    with nullcontext() if config.dry_run else lock_folder(config.train.folder, accelerator):
        return _train(config, accelerator)


def _train(config: TrainVAE, accelerator: Accelerator) -> Path | None:
    # Clips to train on, and clips and networks that score
    train = config.train
    batches, clips = config.load(accelerator)
    held_out = config.held_out and fixed_clips(config.held_out)
    evaluate: Evaluate | None = None
    if held_out is not None and train.evaluate_every is not None:
        group = config.vae_config.temporal_ratio
        scorer = HeldOut(held_out, config.num_held_out_clips, group, config.metric_networks)

        def scores(model: nn.Module) -> dict[str, float]:
            assert isinstance(model, VideoAutoencoder)
            return scorer.scores(model.reconstruct, accelerator.device)

        evaluate = scores

    # Model and losses
    loss = VAELoss(config.loss, lpips_bf16=train.precision == "bf16").to(accelerator.device)
    torch.manual_seed(fold(train.seed, "weights"))
    model = initial_model(
        config.video_config, image=config.stage == "image", source=config.init_from
    )
    gan = None
    if config.adversarial is not None:
        torch.manual_seed(fold(train.seed, "discriminator"))
        discriminator = Discriminator(config.adversarial.discriminator)
        log.info("discriminator: all weights are new")
        gan = AdversarialLoss(config.adversarial, loss, discriminator, accelerator)
    regularizers = Regularizers(config.regularizers, model)
    if config.train_only:
        train_parts(
            *(model, config.train_only, max(config.sizes)),
            gan=config.adversarial,
            regularizers=config.regularizers,
        )
    step_loss = StepLoss(loss, model, accelerator, gan, regularizers)
    loss_function = logging_sources(step_loss, source_names(config.folders))

    # The run, new or resumed
    inputs = config.inputs(clips)
    if config.init_from is not None:
        inputs["init_from"] = Input(config.init_from, weights_hash(model))
    trainer = Trainer(
        config,
        train,
        accelerator,
        model,
        discriminator=None if gan is None else gan.training,
        states={} if gan is None else {"adversarial": gan},
        inputs=inputs,
    )
    prepare(trainer.model, recompute=config.activation_checkpointing, compile=config.compile)

    # Memory of a step
    blank = config.largest_batch(accelerator.num_processes)
    blank |= step_loss.draw(blank, train.seed, trainer.step, range(len(blank["video"])))
    if config.dry_run:
        dry_run(
            *(trainer, blank, loss_function),
            clips_in_data=sum(map(len, clips)) or None,
            clips_per_step=config.clips_per_step,
            sources=config.clips_per_source(clips),
        )
        return None
    if gan is not None:
        log.info(measured(trainer, trainer.measure_step_memory(blank, loss_function)))

    # Train
    shown, preview = held_out or next(iter(clips), None), None
    if shown is not None and config.num_previews:
        preview = preview_of(shown, config.num_previews, compared, accelerator)
    batches = with_draws(batches, step_loss.draw, train.seed, accelerator.process_index)
    return trainer.run(batches, loss_function, preview, evaluate, next_command=config.next_command)


if __name__ == "__main__":
    main(TrainVAE, run)
