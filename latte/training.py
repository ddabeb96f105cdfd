"""The loss of a training step, and the loss by quarter of the way from data to noise.

All draws are functions of the seed, the step and the place in the global batch.
"""

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from common.seeding import generator, noise
from engine.optimization import Batch, StepInfo
from latte.config import LatteConfig
from latte.diffusion_process import DiffusionProcess
from latte.embeddings import drop_labels
from latte.joint import JointBatch

QUARTERS = 4


class LatteLoss:
    """The loss function of a run, for `engine.train.Trainer`.

    Args:
        process: What the model learns to reverse.
        config: Of the model.
        joint: Where the images of joint training are.
        accelerator: Of the run.
    """

    def __init__(
        self,
        process: DiffusionProcess,
        config: LatteConfig,
        joint: JointBatch,
        accelerator: Accelerator,
    ):
        self.process = process
        self.config = config
        self.joint = joint
        self.accelerator = accelerator

    def __call__(self, model: nn.Module, batch: Batch, info: StepInfo) -> dict[str, Tensor]:
        """Means over the rows of the losses of `DiffusionProcess.training_loss`.

        Args:
            model: A Latte, perhaps wrapped for several processes.
            batch: `latent` `b c t h w`, images last; `label` `b`, and with images `image_labels`
                `b i`.
            info: Seed, step, and places in the global batch.
        """
        device = self.accelerator.device
        x0 = batch["latent"].to(device, non_blocking=True)
        draw = noise(tuple(x0.shape[1:]), info.seed, "diffusion", info.step, info.positions)
        times = [generator(info.seed, "timestep", info.step, p) for p in info.positions]
        t = torch.cat([self.process.draw_time(g) for g in times]).to(device)
        y = self._labels(batch, info)
        y = None if y is None else y.to(device)
        weight = self.joint.frame_weight(info.positions)
        weight = None if weight is None else weight.to(device)
        with self.accelerator.autocast():
            losses = self.process.training_loss(
                lambda x, t: model(x, t, y, self.joint.per_clip), x0, t, draw.to(device), weight
            )
        return {name: value.mean() for name, value in losses.items()}

    @torch.no_grad()
    def quarters(
        self, model: nn.Module, x0: Float[Tensor, "c t h w"], label: int, seed: int, index: int
    ) -> Float[Tensor, " 4"]:
        """Squared error of the prediction at one time in each quarter, data first, noise last.

        The times and the noise follow from (seed, index), so that two models, or two states of one,
        can be compared.
        """
        share = torch.rand(QUARTERS, generator=generator(seed, "evaluate time", index))
        t = self.process.timestep_at((torch.arange(QUARTERS) + share) / QUARTERS)
        draw = noise(tuple(x0.shape), seed, "evaluate", index, range(QUARTERS))
        device = self.accelerator.device
        y = None
        if self.config.num_classes is not None:
            y = torch.full((QUARTERS,), label, device=device)
        rows = x0.expand(QUARTERS, *x0.shape).to(device)
        with self.accelerator.autocast():
            losses = self.process.training_loss(
                lambda x, t: model(x, t, y), rows, t.to(device), draw.to(device)
            )
        return losses["mse"]

    def _labels(self, batch: Batch, info: StepInfo) -> Tensor | None:
        """Labels of clips and images; some rows' dropped, each by a draw of its own place."""
        if self.config.num_classes is None:
            return None
        labels = batch["label"]
        if self.joint.per_clip:
            labels = torch.cat([labels[:, None], batch["image_labels"]], dim=1)  # b (1 + i)
        rows = zip(labels.split(1), info.positions, strict=True)
        drops = (
            drop_labels(y, self.config, generator(info.seed, "drop", info.step, p)) for y, p in rows
        )
        return torch.cat(list(drops))
