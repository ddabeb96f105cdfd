"""What spatial tiling changes: a trained VAE on a video's first frames, in tiles against whole."""

from dataclasses import dataclass

import av
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from common.cli import main
from common.psnr import psnr_from_mse
from vae import VideoVAE
from vae.tiling import Tiling


@dataclass(frozen=True, kw_only=True)
class TilingBenchmark:
    """Error of tiled encoding and decoding against the whole frame, for several overlaps."""

    vae: str = "runs/demo/video_vae/export"
    """Folder or hub id of a video VAE."""
    video: str = "datasets/demo/clips/bikes.mp4"
    """Video file."""
    frames: int = 5
    """Frames from its start, 1 + 4n."""
    height: int = 256
    """They are resized to this height."""
    width: int = 384
    """And this width."""
    tile: int = 128
    """Height and width of a tile."""
    overlaps: tuple[tuple[int, int], ...] = ((0, 0), (0, 32), (16, 0), (16, 32), (32, 32), (48, 16))
    """Pairs of context and blend, pixels."""


def run(config: TilingBenchmark) -> None:
    """Print one line per overlap."""
    model, x = VideoVAE.from_pretrained(config.vae), read(config)
    with torch.no_grad():
        z = model.encode(x).mean
        whole = model.decode(z)
        print(f"whole frame: PSNR {psnr(whole, x):.2f} against the source")
        print("context blend | latent: relative RMS error | decoded: PSNR, largest error | source")
        for context, blend in config.overlaps:
            tiling = Tiling(height=config.tile, width=config.tile, context=context, blend=blend)
            latent = model.encode(x, tiling=tiling).mean
            y = model.decode(z, tiling=tiling)
            both = model.decode(latent, tiling=tiling)
            error = float((latent - z).square().mean().sqrt() / z.std())
            print(
                f"{context:7} {blend:5} | {error:26.4f} | {psnr(y, whole):13.1f}, "
                f"{float((y - whole).abs().max()):13.3f} | {psnr(both, x):6.2f}"
            )


def read(config: TilingBenchmark) -> Tensor:
    """The video's first frames, 1 3 t h w in [-1, 1]."""
    with av.open(config.video) as container:
        frames = zip(range(config.frames), container.decode(video=0), strict=False)
        pixels = torch.from_numpy(np.stack([f.to_ndarray(format="rgb24") for _, f in frames]))
    x = rearrange(pixels, "t h w c -> t c h w").float() / 127.5 - 1
    x = F.interpolate(x, (config.height, config.width), mode="bicubic", antialias=True)
    return rearrange(x, "t c h w -> 1 c t h w")


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of values clamped to [-1, 1]."""
    return psnr_from_mse((a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean(), peak=2).item()


if __name__ == "__main__":
    main(TilingBenchmark, run)
