"""Train an image VAE, or a video VAE inflated from one."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from data.dataset import ClipConfig, ClipDataset
from data.encode import to_uint8, write_video
from data.loader import training_batches
from engine.cli import main
from engine.config import TrainConfig
from engine.files import read_json
from engine.seeding import fold, noise
from engine.train import Batch, Preview, StepInfo, Trainer, training_accelerator
from vae import ImageVAE, VAEConfig, VideoVAE, inflate
from vae.losses import VAELoss, VAELossConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainVAE:
    """Train IV-VAE on packed videos: first the image VAE, then the video VAE inflated from it."""

    train: TrainConfig
    """Length, batch, optimiser, run folder."""
    data: ClipConfig
    """Training clips."""
    model: VAEConfig = field(default_factory=VAEConfig)
    """The video VAE. The image stage trains the image VAE that it is inflated from."""
    stage: Literal["image", "video"] = "video"
    """image: one branch, on single frames; video: the whole model."""
    init_from: str | None = None
    """Folder or hub id of weights to start from: an image VAE is inflated (Eq. 3 and 4 of the
    supplement), a video VAE continued. Default: random weights."""
    loss: VAELossConfig = field(default_factory=VAELossConfig)
    """Weights of Eq. 5."""
    previews: int = 4
    """Training clips reconstructed side by side at every checkpoint; 0 for none."""

    def __post_init__(self) -> None:
        if self.stage == "image" and self.data.frames != 1:
            raise ValueError(
                f"stage=image trains on single frames: set data.frames=1, got {self.data.frames}"
            )
        self.vae_config.latent_shape(self.data.frames, self.data.height, self.data.width)

    @property
    def vae_config(self) -> VAEConfig:
        """Of the model that is trained."""
        return self.model.image() if self.stage == "image" else self.model


def run(config: TrainVAE) -> Path:
    """Train to the end, resuming what the run folder holds; returns the folder of the weights."""
    vae, train = config.vae_config, config.train
    accelerator = training_accelerator(train)
    dataset = ClipDataset(config.data, seed=train.seed)
    batches = training_batches(dataset, train, accelerator)
    loss = VAELoss(config.loss).to(accelerator.device)
    torch.manual_seed(fold(train.seed, "weights"))
    trainer = Trainer(config, train, accelerator, _initial_model(config))
    latent = vae.latent_shape(config.data.frames, config.data.height, config.data.width)

    def step_loss(model: nn.Module, batch: Batch, info: StepInfo) -> dict[str, Tensor]:
        video = batch["video"].to(accelerator.device, non_blocking=True)
        draw = noise(latent, info.seed, "posterior", info.step, info.positions)
        with accelerator.autocast():
            reconstruction, posterior = model(video, draw.to(accelerator.device))
        return loss(reconstruction, video, posterior)

    return trainer.run(batches, step_loss, _preview(config, dataset) if config.previews else None)


def _initial_model(config: TrainVAE) -> VideoVAE:
    if config.init_from is None:
        return ImageVAE(config.vae_config) if config.stage == "image" else VideoVAE(config.model)
    if config.stage == "image":
        return ImageVAE.from_pretrained(config.init_from)
    source = Path(config.init_from)
    is_image = (
        source.is_dir() and read_json(source / "config.json").get("model_class") == "ImageVAE"
    )
    if is_image:
        log.info("inflating the image VAE %s", source)
        return inflate(ImageVAE.from_pretrained(source), config.model)
    model = VideoVAE.from_pretrained(config.init_from)
    if model.config != config.model:
        raise ValueError(f"{source}: holds {model.config}, but the config asks for {config.model}")
    return model


def _preview(config: TrainVAE, dataset: ClipDataset) -> Preview:
    """Source above reconstruction, clips side by side."""
    count = min(config.previews, len(dataset))

    @torch.no_grad()
    def write(model: nn.Module, step: int, folder: Path) -> None:
        assert isinstance(model, VideoVAE)
        videos = torch.stack([dataset[(0, i)]["video"] for i in range(count)])
        device = next(model.parameters()).device
        clips = [(x, model.decode(model.encode(x).mode())) for x in videos.to(device).split(1)]
        pairs = [torch.cat([x[0], y[0].clamp(-1, 1)], dim=2) for x, y in clips]  # c t (2 h) w
        frames = to_uint8(torch.cat(pairs, dim=3).cpu())
        write_video(folder / f"step-{step:08d}.mp4", frames, dataset.frame_rate)

    return write


if __name__ == "__main__":
    main(TrainVAE, run)
