"""Look into a latent cache: counts, statistics, decoded latents beside their sources, its card."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from accelerate import Accelerator
from annotated_types import Ge, Le
from torch import Tensor
from tqdm import tqdm

from common.accelerator import make_accelerator
from common.cli import main
from common.config import Config
from common.files import check_output_file, write_json
from common.pixels import to_float
from common.seeding import fold
from data.latents.dataset import LatentDataset
from data.latents.inspection import Source, clips_behind, description, draw_grid
from eval.metrics.diffusability import diffusability_card
from latte.tiny_denoiser import DenoiserConfig, denoiser_losses
from vae.base import VideoAutoencoder
from vae.decoder_measures import decoder_measures
from vae.parts import decoder_hash, encoder_hash
from vae.registry import load_vae


@dataclass(frozen=True, kw_only=True)
class InspectCache(Config):
    """Print what a latent cache holds; with its VAE, show decoded latents beside their sources."""

    latents: str
    """Folder of the latent cache."""
    vae: str | None = None
    """The VAE that made it, as cache_latents.py took it; default: only counts and statistics."""
    data: str | None = None
    """Folder of the shards it was made from; default: decoded latents alone."""
    out: str = "inspect"
    """Folder for grid.png (first, middle and last frames) and grid.mp4."""
    num_clips: Annotated[int, Ge(1), Le(1000)] = 6
    """Latents shown, one per column, drawn at random by the seed."""
    seed: int = 0
    """Of that draw, of the noise and the denoiser of the card."""
    card: Path | None = None
    """JSON file for the diffusability card, how easy the latents are to generate; with vae, and
    with data, it holds what needs them. report.py shows several side by side."""
    num_card_clips: Annotated[int, Ge(4)] = 128
    """Latents that it is about, at most; drawn like those that are shown."""
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    """The tiny denoiser of the card."""
    batch_size: Annotated[int, Ge(1)] = 4
    """Latents that the card decodes at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vae is None and self.data is not None and self.card is None:
            raise ValueError("data requires vae or card")
        check_output_file("card", self.card)


def run(config: InspectCache) -> None:
    """Print, then draw and measure."""
    latents = LatentDataset(config.latents, posterior="mean")
    print("\n".join(description(latents)))
    vae = None if config.vae is None else load_vae(config.vae)
    if vae is not None:
        latents.check_encoder(encoder_hash(vae))
    source = None if config.data is None else clips_behind(latents, config.data)
    accelerator = make_accelerator()
    order = sorted(range(len(latents)), key=lambda i: fold(config.seed, "inspect", i))
    if vae is not None:
        vae.to(accelerator.device)
        decode = partial(_decode, vae, latents.manifest["source"]["frames"])
        shown = draw_grid(latents, order[: config.num_clips], decode, source, Path(config.out))
        print("\n".join(shown))
    if config.card is not None:
        _measure(config, latents, vae, source, order[: config.num_card_clips], accelerator)


def _decode(vae: VideoAutoencoder, frames: int, latent: Tensor) -> Tensor:
    z = latent.to(next(vae.parameters()).device)
    with torch.inference_mode():
        return vae.decode(z, size=vae.config.decoded_size(z, frames)).cpu()


def _measure(
    config: InspectCache,
    latents: LatentDataset,
    vae: VideoAutoencoder | None,
    source: Source | None,
    indices: list[int],
    accelerator: Accelerator,
) -> None:
    """Write the card: statistics of posterior means, a denoiser of samples as Latte is trained."""
    means = torch.stack([latents.draw(0, i)[0] for i in indices])  # n c t h w
    videos = None if source is None else torch.stack([source(i) for i in indices])
    drawn = LatentDataset(config.latents, seed=config.seed)
    samples = torch.stack([drawn[0, i]["latent"] for i in indices])
    frames = latents.manifest["source"]["frames"]

    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        for first in tqdm(range(0, len(means), config.batch_size), desc="decoding"):
            part = slice(first, first + config.batch_size)
            x = None if videos is None else to_float(videos[part].to(accelerator.device))
            yield means[part].to(accelerator.device), x

    card = diffusability_card(
        means.numpy(),
        None if videos is None else videos.numpy(),
        denoiser=denoiser_losses(
            samples, config.denoiser, accelerator, seed=config.seed, progress=True
        ),
        decoder={}
        if vae is None
        else decoder_measures(vae, batches(), latents.std, frames=frames, seed=config.seed),
        protocol={
            "seed": config.seed,
            "latents": latents.hash,
            "encoder": latents.encoder_hash,
            "decoder": None if vae is None else decoder_hash(vae),
            "source": latents.manifest["source"],
            "denoiser": asdict(config.denoiser),
        },
    )
    assert config.card is not None
    write_json(config.card, card)
    for name, value in card["measures"].items():
        print(f"  {name}: {value:.4f}")
    print(f"{config.card}: the card of {len(indices)} latents")


if __name__ == "__main__":
    main(InspectCache, run)
