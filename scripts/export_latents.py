"""Export a latent cache to webdataset tars."""

from dataclasses import dataclass

from common.cli import main
from common.config import Config
from data.latents.dataset import LatentDataset
from data.latents.inspection import export_latents


@dataclass(frozen=True, kw_only=True)
class ExportLatents(Config):
    """Write a latent cache as webdataset tars, to share it; run it again to go on."""

    latents: str
    """Folder of the latent cache."""
    out: str
    """Folder for the tars."""


def run(config: ExportLatents) -> None:
    """Write the tars that are missing."""
    latents = LatentDataset(config.latents)
    tars = export_latents(latents, config.out)
    size = sum(tar.stat().st_size for tar in tars)
    print(f"{config.out}: {len(latents)} latents in {len(tars)} tars, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(ExportLatents, run)
