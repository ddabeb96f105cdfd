"""Training runs of tiny models, as configs and as command lines."""

from dataclasses import asdict
from pathlib import Path

import yaml
from safetensors.torch import load_file
from torch import Tensor

from data.clips.dataset import ClipConfig
from engine.config import OptimizerConfig, TrainConfig
from latte.config import LatteOptions
from scripts.train_latte import TrainLatte
from scripts.train_vae import TrainVAE
from tests.builders.commands import ROOT
from vae import VAEConfig
from vae.adversarial import AdversarialConfig
from vae.discriminator import DiscriminatorConfig
from vae.losses import VAELossConfig

MODEL = VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
SIZE = {"height": 16, "width": 16}
DISCRIMINATOR = DiscriminatorConfig(channels=16, layers=1)


def settings(folder, steps, **values) -> TrainConfig:
    common = {"global_batch_size": 4, "log_every": 1, "save_every": 2, "learning_rate": 1e-3}
    return TrainConfig(**{"folder": str(folder), "steps": steps, **common, **values})


def video_run(folder, shards, steps=4, **values) -> TrainVAE:
    return TrainVAE(
        train=settings(folder, steps, **values),
        data=ClipConfig(folder=str(shards), frames=5, flip=True, **SIZE),
        model=MODEL,
        loss=VAELossConfig(perceptual="none"),
        num_previews=1,
    )


def gan_run(folder, shards, steps=6, *, start=2, discriminator_rate=1e-3, held_out=False, **values):
    """With a discriminator from step `start` on."""
    clips = ClipConfig(folder=str(shards), frames=5, flip=True, **SIZE)
    return TrainVAE(
        train=settings(folder, steps, **values),
        data=clips,
        model=MODEL,
        loss=VAELossConfig(perceptual="none"),
        adversarial=AdversarialConfig(
            start_step=start,
            warmup_steps=2,
            discriminator=DISCRIMINATOR,
            optimizer=OptimizerConfig(learning_rate=discriminator_rate),
        ),
        held_out=clips if held_out else None,
        num_held_out_clips=2,
        num_previews=0,
    )


def latte_run(folder, latents, steps=4, **values) -> TrainLatte:
    return TrainLatte(
        train=settings(folder, steps, **values),
        latents=str(latents),
        model=LatteOptions(
            size="custom", hidden_size=16, depth=2, num_heads=2, class_conditional=True
        ),
    )


def weights(folder: Path) -> dict[str, Tensor]:
    """Those that a finished run has exported."""
    return load_file(Path(folder) / "export" / "model.safetensors")


def as_command(config, tmp_path) -> list[str]:
    """The command line that gives this config."""
    file = tmp_path / f"{type(config).__name__}.yaml"
    file.write_text(yaml.safe_dump(_without_tuples(asdict(config))))
    script = "train_vae.py" if isinstance(config, TrainVAE) else "train_latte.py"
    return [str(ROOT / "scripts" / script), "--config", str(file)]


def _without_tuples(value):
    if isinstance(value, dict):
        return {k: _without_tuples(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tuples(v) for v in value]
    return value
