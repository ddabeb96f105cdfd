"""Train Latte on cached latents."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from data.encode import to_uint8, write_video
from data.latents import LatentDataset
from data.loader import training_batches
from engine.cli import main
from engine.config import TrainConfig
from engine.seeding import fold, generator, noise
from engine.train import Batch, Preview, StepInfo, Trainer, training_accelerator
from latte import Latte, LatteConfig
from latte.config import PRESETS
from latte.diffusion import DiffusionConfig, GaussianDiffusion
from latte.embeddings import drop_labels
from latte.notes import LatentNotes
from latte.samplers import SamplerConfig, sample
from vae import VideoVAE, weights_hash


@dataclass(frozen=True, kw_only=True)
class LatteOptions:
    """The transformer; the sizes of the latent come from the cache."""

    size: Literal["S", "B", "L", "XL", "custom"] = "XL"
    """One of the paper's sizes, or custom: then give hidden_size, depth and num_heads."""
    hidden_size: int | None = None
    """Width of a token (custom size)."""
    depth: int | None = None
    """Blocks in all (custom size)."""
    num_heads: int | None = None
    """Attention heads per block (custom size)."""
    patch_size: int = 2
    """Side of the square patch that becomes one token, in latent pixels."""
    class_conditional: bool = False
    """Condition on the labels of the cache; needed for classifier-free guidance."""
    class_dropout: float = 0.1
    """Share of training clips whose label is dropped."""

    def __post_init__(self) -> None:
        own = (self.hidden_size, self.depth, self.num_heads)
        if (self.size == "custom") != all(value is not None for value in own) or (
            self.size != "custom" and any(value is not None for value in own)
        ):
            raise ValueError(
                f"size={self.size} with hidden_size, depth, num_heads = {own}: give all three with "
                "size=custom, none with a named size"
            )

    def build(self, latents: LatentDataset) -> LatteConfig:
        """The model's config for these latents."""
        own = {"hidden_size": self.hidden_size, "depth": self.depth, "num_heads": self.num_heads}
        c, t, h, w = latents.latent_shape
        if self.class_conditional and not latents.class_names:
            raise ValueError(f"{latents.folder}: has no classes; set class_conditional to false")
        return LatteConfig(
            in_channels=c,
            num_frames=t,
            height=h,
            width=w,
            patch_size=self.patch_size,
            num_classes=len(latents.class_names) if self.class_conditional else None,
            class_dropout=self.class_dropout,
            **(own if self.size == "custom" else PRESETS[self.size]),  # type: ignore[arg-type]
        )


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
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Noise schedule and objective."""
    vae: str | None = None
    """The VAE that made the latents: decodes samples at every checkpoint. Default: no samples."""
    preview: SamplerConfig = field(default_factory=lambda: SamplerConfig(method="ddim", steps=20))
    """How those samples are drawn."""
    previews: int = 4
    """Their number."""


def run(config: TrainLatte) -> Path:
    """Train to the end, resuming what the run folder holds; returns the folder of the weights."""
    train = config.train
    latents = LatentDataset(config.latents, config.posterior, seed=train.seed)
    vae = None
    if config.vae is not None:
        vae = VideoVAE.from_pretrained(config.vae)
        latents.check_vae(weights_hash(vae))
    model_config = config.model.build(latents)
    accelerator = training_accelerator(train)
    batches = training_batches(latents, train, accelerator)
    diffusion = GaussianDiffusion(config.diffusion)
    torch.manual_seed(fold(train.seed, "weights"))
    notes = LatentNotes(
        vae_hash=latents.vae_hash,
        cache_hash=latents.hash,
        mean=tuple(latents.mean.tolist()),
        std=tuple(latents.std.tolist()),
        class_names=tuple(latents.class_names),
        frame_rate=latents.manifest["frame_rate"],
        diffusion=config.diffusion,
    )
    trainer = Trainer(config, train, accelerator, Latte(model_config), notes.to_json())

    def step_loss(model: nn.Module, batch: Batch, info: StepInfo) -> dict[str, Tensor]:
        device = accelerator.device
        x0 = batch["latent"].to(device, non_blocking=True)
        draw = noise(tuple(x0.shape[1:]), info.seed, "diffusion", info.step, info.positions)
        t = _timesteps(info, len(diffusion))
        y = _labels(batch["label"], model_config, info)
        y = None if y is None else y.to(device)
        with accelerator.autocast():
            losses = diffusion.training_loss(
                lambda x, t: model(x, t, y), x0, t.to(device), draw.to(device)
            )
        return {name: value.mean() for name, value in losses.items()}

    preview = None if vae is None else _preview(config, vae.to(accelerator.device), notes)
    return trainer.run(batches, step_loss, preview)


def _timesteps(info: StepInfo, total: int) -> Tensor:
    draws = [
        torch.randint(total, (1,), generator=generator(info.seed, "timestep", info.step, p))
        for p in info.positions
    ]
    return torch.cat(draws)


def _labels(labels: Tensor, config: LatteConfig, info: StepInfo) -> Tensor | None:
    """Labels with some dropped, each by a draw of its own place in the global batch."""
    if config.num_classes is None:
        return None
    rows = zip(labels.split(1), info.positions, strict=True)
    return torch.cat(
        [drop_labels(y, config, generator(info.seed, "drop", info.step, p)) for y, p in rows]
    )


def _preview(config: TrainLatte, vae: VideoVAE, notes: LatentNotes) -> Preview:
    """A row of decoded samples, from the same noise each time, of the first classes."""
    diffusion = GaussianDiffusion(config.diffusion)

    @torch.no_grad()
    def write(model: nn.Module, step: int, folder: Path) -> None:
        assert isinstance(model, Latte)
        classes = model.config.num_classes
        indices = range(config.previews)
        labels = None if classes is None else [i % classes for i in indices]
        z = sample(model, diffusion, config.preview, indices=indices, labels=labels, seed=0)
        clips = [vae.decode(part).clamp(-1, 1)[0] for part in notes.denormalize(z).split(1)]
        path = folder / f"step-{step:08d}.mp4"
        write_video(path, to_uint8(torch.cat(clips, dim=-1).cpu()), fps=notes.frame_rate)

    return write


if __name__ == "__main__":
    main(TrainLatte, run)
