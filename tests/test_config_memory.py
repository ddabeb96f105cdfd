"""Every shipped training config fits a GPU of 80 GB, by the estimate of its memory."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState
from torch._subclasses import FakeTensorMode

from benchmarks.traffic_count import CudaRules
from common.cli import parse
from common.perceptual import PerceptualLoss
from engine.accelerator import training_accelerator
from engine.memory import estimate_memory
from engine.train import Trainer
from latte import Latte
from latte.diffusion_process import make_process
from latte.training import JointBatch, LatteLoss
from scripts.train_latte import TrainLatte
from scripts.train_vae import TrainVAE
from vae.adversarial import AdversarialLoss
from vae.discriminator import Discriminator
from vae.losses import VAELoss
from vae.training import VAETrainingLoss, initial_model, prepare

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
CONFIGS = Path(__file__).parents[1] / "configs"
LARGEST = 76e9
"""Bytes of a GPU of 80 GB that tensors may take."""
CLASSES = 400


def configs(folder):
    return sorted(
        path.relative_to(CONFIGS).as_posix() for path in (CONFIGS / folder).rglob("*.yaml")
    )


@pytest.fixture
def fake():
    """Tensors without data, and on CPU tensors what PyTorch would choose on a GPU."""
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's precision may be left
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        stack.enter_context(patch("vae.norms._has_kernel", lambda x: x.dtype != torch.float64))
        stack.enter_context(CudaRules())
        # all is on the CPU, and modules without data cannot be moved
        stack.enter_context(patch("torch.nn.Module.to", lambda module, *_, **__: module))
        yield mode
    AcceleratorState._reset_state(reset_partial_state=True)


def largest(trainer, batch, loss):
    """Bytes of a step of one process; of several, which also exchange gradients in buffers."""
    state, activations = estimate_memory(trainer, batch, loss)
    return 5 / 4 * state + activations


@pytest.mark.parametrize("name", configs("vae"))
def test_a_vae_stage_fits(name, fake, tmp_path):
    flags = ["--config", str(CONFIGS / name), f"--train.folder={tmp_path}"]
    config = replace(parse(TrainVAE, flags), init_from=None, train_only=[])
    accelerator = training_accelerator(config.train)
    without = replace(config.loss, perceptual="none")
    loss = VAELoss(without, lpips_bf16=config.train.precision == "bf16")
    with fake:
        model = initial_model(config.video_config, image=config.stage == "image", source=None)
        if config.loss.perceptual != "none":
            loss.perceptual = PerceptualLoss(config.loss.perceptual, None)
        discriminator = config.adversarial and Discriminator(config.adversarial.discriminator)
    gan = None
    if discriminator is not None:
        gan = AdversarialLoss(config.adversarial, loss, discriminator, accelerator)
    with fake:
        trainer = Trainer(
            config,
            config.train,
            accelerator,
            model,
            discriminator=gan and gan.training,
            states={} if gan is None else {"adversarial": gan},
        )
    prepare(trainer.model, replace(config, compile=False), trainer.accelerator)
    step_loss = VAETrainingLoss(loss, model, accelerator, gan)
    batch = config.largest_batch(1)
    batch |= step_loss.draw(batch, 0, 0, range(len(batch["video"])))
    assert 0 < largest(trainer, batch, step_loss) < LARGEST


@pytest.mark.parametrize("name", configs("latte"))
def test_a_latte_run_fits(name, fake, tmp_path):
    flags = ["--config", str(CONFIGS / name), f"--train.folder={tmp_path}"]
    config = parse(TrainLatte, flags)
    assert config.model.size in ("XL", "custom")  # the largest
    accelerator = training_accelerator(config.train)
    model_config = config.model.build((16, 5, 32, 32), CLASSES, flow=config.flow is not None)
    with fake:
        trainer = Trainer(config, config.train, accelerator, Latte(model_config))
    trainer.model.activation_checkpointing = config.activation_checkpointing
    clips = config.train.global_batch_size
    images = 0 if config.images is None else config.images.per_step
    joint = JointBatch(clips, images, model_config.num_frames)
    loss = LatteLoss(make_process(config.diffusion, config.flow), model_config, joint, accelerator)
    batch = {
        "latent": torch.zeros(clips, 16, 5 + joint.per_clip, 32, 32),
        "label": torch.zeros(clips, dtype=torch.int64),
        "image_labels": torch.zeros(clips, joint.per_clip, dtype=torch.int64),
    }
    batch |= loss.draw(batch, 0, 0, range(clips))
    assert 0 < largest(trainer, batch, loss) < LARGEST
