"""Train Latte on cached latents."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from accelerate import Accelerator
from torch import nn

from common.cli import main
from common.config import MAY_CHANGE
from common.output_folder import Input, lock_folder
from data.clips.batch_order import logging_sources, source_names
from data.clips.batches import training_batches
from data.training import LatentTraining, hash_of
from engine.accelerator import training_accelerator
from engine.dry_run import dry_run
from engine.prefetch import with_draws
from engine.train import Trainer
from eval.protocols.training_scores import SampleFVD, SampleFVDConfig, preview_samples
from latte.samplers import check_sampler
from latte.training import JointBatch, LatteLoss, PreviewSampler, initial_model, prepare
from latte.training_config import LatteTraining
from latte.training_metadata import TrainingMetadata
from vae import weights_hash
from vae.parts import encoder_hash
from vae.registry import load_vae


@dataclass(frozen=True, kw_only=True)
class TrainLatte(LatteTraining, LatentTraining):
    """Train Latte, unconditional or class-conditional, on the latents that cache_latents wrote.

    `{size}` in train.folder stands for the model's size and patch, such as xl2.
    """

    fvd: Annotated[SampleFVDConfig | None, MAY_CHANGE] = None
    """Also measure then how far a few samples, drawn like previews, are from real clips; needs the
    VAE. null: not."""
    dry_run: Annotated[bool, MAY_CHANGE] = False
    """Measure one step, print the plan and end; nothing is written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fvd is not None and (self.vae is None or self.train.evaluate_every is None):
            raise ValueError(
                "fvd: give vae too, which decodes the samples, and train.evaluate_every, the steps "
                "from one measurement to the next"
            )

    def named(self) -> "TrainLatte":
        """The same with `{size}` replaced in train.folder."""
        folder = self.train.folder.replace("{size}", self.name)
        return replace(self, train=replace(self.train, folder=folder))


def run(config: TrainLatte) -> Path | None:
    """Train to the end, resuming what the run folder holds; returns the folder of the weights."""
    config = config.named()
    accelerator = training_accelerator(config.train)
    with nullcontext() if config.dry_run else lock_folder(config.train.folder, accelerator):
        return _train(config, accelerator)


def _train(config: TrainLatte, accelerator: Accelerator) -> Path | None:
    # Latents to train on, perhaps with images behind them, and held-out ones
    train, labeled = config.train, config.model.class_conditional
    parts = config.load(labeled=labeled)
    latents, inputs, images, per_step = parts[0], config.inputs(parts), None, 0
    if config.images is not None:
        images = config.load_images(config.images.latents, labeled=labeled)
        inputs["images"] = Input(str(images.folder), images.hash)
        per_step = config.images.per_step
    joint = JointBatch(train.global_batch_size, per_step, latents.latent_shape[1])
    clips = config.mix(parts, images, joint.per_clip)
    held_out = config.load_held_out(latents, labeled=labeled)
    batches = training_batches(clips, train, accelerator)

    # What samples will need of the latents, what decodes them and what scores them
    metadata = TrainingMetadata(
        **latents.describe(),
        cache_hash=hash_of(parts),
        diffusion=config.diffusion,
        flow=config.flow,
    )
    model_config = config.model.build(
        latents.latent_shape, len(latents.class_names), flow=config.flow is not None
    )
    vae = fvd = preview = draw = None
    if config.vae is not None:
        vae = load_vae(config.vae)
        latents.check_encoder(encoder_hash(vae))
        check_sampler(config.sampler, metadata.process, model_config)
    if config.fvd is not None:
        fvd = SampleFVD(config.fvd, latents.manifest["source"])

    # The run, new or resumed
    model = initial_model(model_config, train.seed, config.init_from)
    if config.init_from is not None:
        inputs["init_from"] = Input(config.init_from, weights_hash(model))
    trainer = Trainer(config, train, accelerator, model, asdict(metadata), inputs=inputs)
    prepare(trainer.model, config, accelerator)
    loss = LatteLoss(metadata.process, model_config, joint, accelerator)
    batches = with_draws(batches, loss.draw, train.seed, accelerator.process_index)
    if config.dry_run:
        dry_run(
            *(trainer, next(batches(0)), loss),
            clips_in_data=sum(map(len, parts)),
            clips_per_step=train.global_batch_size,
            sources=config.clips_per_source(parts),
        )
        return None

    # Samples to look at, and scores of samples and of held-out clips
    if vae is not None:
        draw = PreviewSampler(metadata, config.sampler, vae.to(accelerator.device), accelerator)
        preview = preview_samples(draw, config.num_previews, metadata.frame_rate, accelerator)
    if fvd is not None:
        fvd.prepare(accelerator.device, trainer.folder.path / "features")

    def evaluate(model: nn.Module) -> dict[str, float]:
        scores = loss.scores(model, held_out, train.seed)
        return scores | (fvd.score(partial(draw, model)) if fvd and draw else {})

    # Train
    log_loss = logging_sources(loss, source_names(config.folders))
    following = (
        f"python scripts/sample.py --latte {train.folder}/export --vae {config.vae or 'VAE'} "
        "--out SAMPLES --num_clips 16"
    )
    return trainer.run(batches, log_loss, preview, evaluate, next_command=following)


if __name__ == "__main__":
    main(TrainLatte, run)
