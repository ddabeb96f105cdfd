"""Train an image VAE, a video VAE inflated from one, or either with a discriminator."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from accelerate import Accelerator

from common.cli import main
from common.config import MAY_CHANGE
from common.output_folder import Input, lock_folder
from data.clips.batch_order import logging_sources, source_names
from data.training import ClipTraining
from engine.accelerator import training_accelerator
from engine.dry_run import dry_run
from engine.memory import measured_memory
from engine.prefetch import with_draws
from engine.train import Trainer
from eval.protocols.training_scores import (
    HeldOut,
    HeldOutConfig,
    fixed_clips,
    preview_reconstructions,
)
from vae import weights_hash
from vae.registry import OTHERS
from vae.training import initial_losses, prepare
from vae.training_config import VAETraining
from vae.visual import compared

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainVAE(VAETraining, ClipTraining, HeldOutConfig):
    """Train IV-VAE on packed videos: the image VAE, the video VAE inflated from it, the GAN stage.

    `{model}` in train.folder and init_from stands for the row and z_dim, such as ivvae_z16.
    """

    dry_run: Annotated[bool, MAY_CHANGE] = False
    """Measure one step, print the plan and end; nothing is written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.train, self.sizes, [self.held_out.size] if self.held_out else [])
        if self.train.evaluate_every is not None and self.held_out is None:
            raise ValueError("train.evaluate_every is set, but there is no data in held_out")

    def named(self) -> "TrainVAE":
        """The same with `{model}` replaced in the folders."""
        name = self.name
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
    held_out, evaluate = config.held_out and fixed_clips(config.held_out), None
    if held_out is not None and train.evaluate_every is not None:
        group = config.vae_config.temporal_ratio
        scorer = HeldOut(held_out, config.num_held_out_clips, group, config.metric_networks)
        evaluate = scorer.evaluate_on(accelerator.device)

    # Model and losses, and the run, new or resumed
    loss = initial_losses(config, train, accelerator, config.sizes)
    loss_function = logging_sources(loss, source_names(config.folders))
    inputs = config.inputs(clips)
    if config.init_from is not None:
        inputs["init_from"] = Input(config.init_from, weights_hash(loss.model))
    trainer = Trainer(
        *(config, train, accelerator, loss.model),
        discriminator=loss.gan and loss.gan.training,
        states={"adversarial": loss.gan} if loss.gan else {},
        inputs=inputs,
    )
    prepare(trainer.model, config, accelerator)

    # Memory of a step
    blank = config.largest_batch(accelerator.num_processes)
    blank |= loss.draw(blank, train.seed, trainer.step, range(len(blank["video"])))
    if config.dry_run:
        dry_run(
            *(trainer, blank, loss_function),
            clips_in_data=sum(map(len, clips)) or None,
            clips_per_step=config.clips_per_step,
            sources=config.clips_per_source(clips),
        )
        return None
    if loss.gan is not None:
        log.info(measured_memory(trainer, blank, loss_function))

    # Train
    shown, preview = held_out or next(iter(clips), None), None
    if shown is not None and config.num_previews:
        preview = preview_reconstructions(shown, config.num_previews, compared, accelerator)
    batches = with_draws(batches, loss.draw, train.seed, accelerator.process_index)
    return trainer.run(batches, loss_function, preview, evaluate, next_command=config.next_command)


if __name__ == "__main__":
    main(TrainVAE, run)
