"""Look into a latent cache: counts, statistics, decoded latents beside their sources."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from matplotlib.image import imsave
from torch import Tensor

from common.accelerator import make_accelerator
from common.cli import main
from common.config import Config
from common.files import atomic_path
from common.pixels import to_float
from common.psnr import psnr_from_mse
from common.seeding import fold
from data.clips.dataset import ClipDataset, PackedClips
from data.latents.dataset import LatentDataset
from data.video.encode import to_uint8, write_video
from vae.parts import encoder_hash
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
    """Of that draw."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vae is None and self.data is not None:
            raise ValueError("data is shown beside decoded latents only: give vae, too")


def run(config: InspectCache) -> None:
    """Print, then draw."""
    latents = LatentDataset(config.latents, posterior="mean")
    _describe(latents)
    if config.vae is None:
        return
    vae = load_vae(config.vae)
    latents.check_encoder(encoder_hash(vae))
    clips = _sources(config, latents) if config.data is not None else None
    device = make_accelerator().device
    vae.to(device)
    order = sorted(range(len(latents)), key=lambda i: fold(config.seed, "inspect", i))
    columns = []
    for index in order[: config.num_clips]:
        with torch.inference_mode():
            z = latents.draw(0, index)[0][None].to(device)
            size = vae.config.decoded_size(z, latents.manifest["source"]["frames"])
            decoded = vae.decode(z, size=size)[0].clamp(-1, 1).cpu()  # c t h w
        source = [] if clips is None else [_source(clips, latents, index)]
        columns.append(torch.cat([*source, decoded], dim=2))
        print(f"  column {len(columns)}: {latents.raw(index)['key']}{_psnr(*source, decoded)}")
    frames = to_uint8(torch.cat(columns, dim=3))
    out = Path(config.out)
    write_video(out / "grid.mp4", frames, latents.manifest["frame_rate"])
    rows = frames[sorted({0, len(frames) // 2, len(frames) - 1})]
    with atomic_path(out / "grid.png") as temporary:
        imsave(temporary, np.concatenate(rows))
    above = "source above decoded" if clips is not None else "decoded"
    print(f"{out}/grid.png and grid.mp4: {above}, one latent per column")


def _describe(latents: LatentDataset) -> None:
    manifest = latents.manifest
    source, statistics = manifest["source"], manifest["statistics"]
    names = ("videos", "too_short", "items", "failures")
    print(f"{latents.folder}: " + ", ".join(f"{manifest['totals'][n]} {n}" for n in names))
    print(
        f"  latents {'x'.join(map(str, latents.latent_shape))} of {source['frames']} frames at "
        f"stride {source['stride']}, {source['height']}x{source['width']} pixels"
    )
    print(
        f"  VAE {manifest['vae']['class']}, encoder {latents.encoder_hash[:12]}, source "
        f"{source['hash'][:12]}"
    )
    for channel, (mean, std) in enumerate(zip(statistics["mean"], statistics["std"], strict=True)):
        print(f"  channel {channel:2}: mean {mean:8.4f}, std {std:8.4f}")
    counts = Counter(latents.label(i) for i in range(len(latents)))
    for label, name in enumerate(latents.class_names):
        print(f"  class {name}: {counts[label]}")
    if counts[-1]:
        print(f"  unlabeled: {counts[-1]}")


def _sources(config: InspectCache, latents: LatentDataset) -> ClipDataset:
    """The clips that were cached."""
    assert config.data is not None
    made = latents.manifest["source"]
    others = ("hash", "crop", "decoder")
    options = {name: value for name, value in made.items() if name not in others}
    clips = ClipDataset(PackedClips(folder=config.data, **options), seed=0)
    if clips.hash != made["hash"]:
        raise ValueError(
            f"{config.data}: not what {latents.folder} was made from "
            f"({clips.hash[:12]}, not {made['hash'][:12]})"
        )
    return clips


def _source(clips: ClipDataset, latents: LatentDataset, index: int) -> Tensor:
    item = latents.raw(index)
    name = item["key"].removesuffix(":flip").rsplit(":", 1)[0]
    number = next(i for i in range(len(clips)) if clips.key(i) == name)
    return to_float(clips.clip(number, item["start"], flip=item["flip"]))


def _psnr(*videos: Tensor) -> str:
    if len(videos) < 2:
        return ""
    mse = (videos[0] - videos[1]).square().mean()
    return f", {psnr_from_mse(mse, peak=2).item():.2f} dB"


if __name__ == "__main__":
    main(InspectCache, run)
