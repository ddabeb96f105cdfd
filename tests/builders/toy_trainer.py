"""A trainer of a toy model in float64 against a discriminator."""

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from engine.config import OptimizerConfig, TrainConfig
from engine.train import Trainer
from vae import DiagonalGaussian
from vae.adversarial import AdversarialConfig, AdversarialLoss
from vae.discriminator import Discriminator, DiscriminatorConfig
from vae.losses import VAELoss, VAELossConfig

SMALL = DiscriminatorConfig(channels=16, layers=1)


class Toy(nn.Module):
    """A small model in float64; its last layer is `head`."""

    def __init__(self):
        super().__init__()
        self.body, self.head = (nn.Conv3d(3, 3, 1).double() for _ in range(2))

    def forward(self, video):
        return self.head(torch.tanh(self.body(video)))

    def save_pretrained(self, folder):
        save_file(self.state_dict(), folder / "model.safetensors")


def toy_trainer(folder, *, steps=4, **values):
    """A trainer of the toy with a discriminator from step 1 on, and the loss of its step."""
    torch.manual_seed(0)
    values = {"global_batch_size": 4, "log_every": 1, "save_every": 2, **values}
    config = TrainConfig(folder=str(folder), steps=steps, **values)
    accelerator = Accelerator(log_with="tensorboard", project_dir=folder)
    model, discriminator = Toy(), Discriminator(SMALL).double()
    options = AdversarialConfig(
        start_step=1, r1_weight=0.1, discriminator=SMALL, optimizer=OptimizerConfig(max_grad_norm=1)
    )
    loss = VAELoss(VAELossConfig(perceptual="none", kl_weight=0.1))
    gan = AdversarialLoss(options, loss, discriminator, accelerator)
    states = {"adversarial": gan}
    trainer = Trainer(config, config, accelerator, model, None, gan.training, states)  # type: ignore[arg-type]
    last_layer = list(model.head.parameters())

    def step_loss(module, batch, info):
        video = batch["video"]
        posterior = DiagonalGaussian(module.body(video), torch.zeros_like(video))
        return gan.generator_loss(module(video), posterior, video, info, last_layer)

    return trainer, step_loss
