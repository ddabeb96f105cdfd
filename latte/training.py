"""Training: what a run starts from, its loss, and the loss by quarter of the way to noise.

All draws are functions of the seed, the step and the place in the global batch.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from common.processes import share_batches
from common.seeding import fold, generator, noise
from engine.compilation import compile_layers, compiles
from engine.losses import Batch, Losses, StepInfo
from latte.config import LatteConfig
from latte.diffusion_process import DiffusionProcess
from latte.embeddings import drop_labels
from latte.model import Latte
from latte.samplers import SamplerConfig, sample
from latte.training_config import LatteTraining
from latte.training_metadata import TrainingMetadata

log = logging.getLogger(__name__)

QUARTERS = 4


def initial_model(config: LatteConfig, seed: int, source: str | None = None) -> Latte:
    """A model in training mode: with new weights drawn from the seed, or with those of `source`.

    Args:
        source: Folder or hub id of a Latte of the same size.

    Raises:
        ValueError: `source` is of another size.
    """
    torch.manual_seed(fold(seed, "weights"))
    model = Latte(config)
    if source is None:
        return model
    given = Latte.from_pretrained(source)
    if replace(given.config, class_dropout=config.class_dropout) != config:
        raise ValueError(
            f"{source}: {given.config} is of another size than {config}. "
            "Start from a model of the same size, or change model and latents."
        )
    model.load_state_dict(given.state_dict())
    log.info("%s: all weights loaded", source)
    return model.train()


def prepare(model: nn.Module, config: LatteTraining, accelerator: Accelerator) -> None:
    """Turn on what saves memory or time in training: activation checkpointing, and compilation of
    the blocks. Weights and their names stay.
    """
    assert isinstance(model, Latte)
    model.activation_checkpointing = config.activation_checkpointing
    if compiles(config.compile, accelerator):
        compile_layers([*model.blocks])


class Decoder(Protocol):
    """A VAE, as far as samples need it."""

    config: Any

    def decode(self, z: Tensor, *, size: Sequence[int] | None = None) -> Tensor:
        """Videos `b 3 t h w` of raw latents, cropped to `size`."""
        ...


@dataclass(frozen=True)
class PreviewSampler:
    """Decoded samples while a model trains, of all classes in turn, always from the same noise."""

    metadata: TrainingMetadata
    """How the latents were normalized and what the model learns to reverse."""
    config: SamplerConfig
    """How samples are drawn."""
    vae: Decoder
    """Decodes raw latents; its `config` gives the size that `metadata.frames` decode to."""
    accelerator: Accelerator

    @torch.no_grad()
    def __call__(self, model: nn.Module, numbers: range) -> Float[Tensor, "b 3 t h w"]:
        """The samples of these numbers, in [-1, 1]."""
        assert isinstance(model, Latte)
        classes = model.config.num_classes
        labels = None if classes is None else [i % classes for i in numbers]
        process = self.metadata.process
        with self.accelerator.autocast():
            z = sample(model, process, self.config, indices=numbers, labels=labels, seed=0)
        size = self.vae.config.decoded_size(z, self.metadata.frames)
        clips = [self.vae.decode(part, size=size) for part in self.metadata.denormalize(z).split(1)]
        return torch.cat(clips).clamp(-1, 1)


@dataclass(frozen=True)
class JointBatch:
    """A global batch of clips among which a number of images is spread evenly.

    All rows of a batch have equally many places for images. Where the images are fewer than the
    places, the rest of the places weighs nothing, wherever in the global batch they are: so the
    gradient is the same however the batch is shared out.
    """

    clips: int
    """Clips of the global batch."""
    images: int
    """Images of the global batch."""
    frames: int
    """Latent frames of a clip."""

    @property
    def per_clip(self) -> int:
        """Places for images behind each clip."""
        return -(-self.images // self.clips)

    def count(self, position: int) -> int:
        """Images that count behind the clip at this place of the global batch."""
        first, last = (p * self.images // self.clips for p in (position, position + 1))
        return last - first

    def frame_weight(self, positions: range) -> Float[Tensor, "b t"] | None:
        """Weights of each row's frames and images in its loss; None if all weigh the same.

        The mean of the rows' losses over the global batch is then the mean over all frames and all
        images that count.
        """
        if self.images == self.per_clip * self.clips:
            return None
        total = self.clips * self.frames + self.images
        weight = torch.zeros(len(positions), self.frames + self.per_clip)
        for row, position in enumerate(positions):
            weight[row, : self.frames + self.count(position)] = self.clips / total
        return weight


@dataclass(frozen=True)
class LatteLoss:
    """The loss function of a run, for `engine.train.Trainer`."""

    process: DiffusionProcess
    """What the model learns to reverse."""
    config: LatteConfig
    """Of the model."""
    joint: JointBatch
    """Where the images of joint training are."""
    accelerator: Accelerator

    def __call__(self, model: nn.Module, batch: Batch, info: StepInfo) -> Losses:
        """Means over the rows of the losses of `DiffusionProcess.training_loss`.

        Args:
            model: A Latte, perhaps wrapped for several processes.
            batch: `latent` `b c t h w`, images last, and what `draw` adds; on the device.
            info: Not needed: all that depends on it is drawn.
        """
        y = batch.get("condition")
        with self.accelerator.autocast():
            losses = self.process.training_loss(
                lambda x, t: model(x, t, y, self.joint.per_clip),
                batch["latent"],
                batch["timestep"],
                batch["noise"],
                batch.get("frame_weight"),
            )
        return Losses({name: value.mean() for name, value in losses.items()})

    def draw(self, batch: Batch, seed: int, step: int, positions: range) -> Batch:
        """What the loss of a batch draws at random, each row's by its place in the global batch.

        Args:
            batch: `latent`; `label` `b`, and with images `image_labels` `b i`.

        Returns: "noise", "timestep", of a conditional model "condition" (labels of clips and
            images, some rows' dropped), and where rows' frames weigh differently "frame_weight".
        """
        shape = tuple(batch["latent"].shape[1:])
        times = [self.process.draw_time(generator(seed, "timestep", step, p)) for p in positions]
        drawn = {
            "noise": noise(shape, seed, "diffusion", step, positions),
            "timestep": torch.cat(times),
        }
        if self.config.num_classes is not None:
            labels = batch["label"]
            if self.joint.per_clip:
                labels = torch.cat([labels[:, None], batch["image_labels"]], dim=1)  # b (1 + i)
            rows = zip(labels.split(1), positions, strict=True)
            drops = [drop_labels(y, self.config, generator(seed, "drop", step, p)) for y, p in rows]
            drawn["condition"] = torch.cat(drops)
        weight = self.joint.frame_weight(positions)
        return drawn if weight is None else {**drawn, "frame_weight": weight}

    def scores(
        self, model: nn.Module, clips: Sequence[tuple[Float[Tensor, "c t h w"], int]], seed: int
    ) -> dict[str, float]:
        """The mean over clips of `quarters`. All processes share the clips, and get the same.

        Args:
            clips: normalized latents with their labels.

        Returns: "mse", and of the quarters "mse_quarter_1" to "mse_quarter_4".
        """

        def row(numbers: range) -> Tensor:
            (i,) = numbers
            x0, label = clips[i]
            return self.quarters(model, x0, label, seed, i).cpu()

        values = torch.stack(share_batches(len(clips), 1, row)).mean(dim=0)
        quarters = {f"mse_quarter_{i + 1}": value for i, value in enumerate(values.tolist())}
        return {"mse": values.mean().item(), **quarters}

    @torch.no_grad()
    def quarters(
        self, model: nn.Module, x0: Float[Tensor, "c t h w"], label: int, seed: int, index: int
    ) -> Float[Tensor, " 4"]:
        """Mean squared error of the prediction at one time in each quarter, data first, noise last.

        `x0` is normalized; `label` does not matter to an unconditional model. The times and the
        noise follow from (seed, index), so that two models, or two states of one, can be compared.
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
