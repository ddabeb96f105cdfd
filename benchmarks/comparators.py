"""What the VAEs of the paper's comparison cost, without any weights: parameters, operations, and
times of encoding and decoding relative to IV-VAE's in the same run."""

from dataclasses import dataclass
from statistics import median
from typing import Annotated, Literal

import torch
from annotated_types import Ge

from benchmarks.shared import clock, seconds_in_turns
from common.cli import main
from common.config import Config
from common.machine import describe_device
from vae import VAEConfig, VideoVAE
from vae.base import VideoAutoencoder
from vae.complexity import Macs, count_macs, count_parameters
from vae.registry import COMPARATORS, comparator_config, published_config

COUNTED = (17, 256, 256)
"""Frames, height and width that operations are counted for."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Config):
    """Parameters, multiply-accumulates, and times relative to IV-VAE's.

    Every model runs in turns with IV-VAE, so that other work on the machine slows both; a ratio is
    the median over the turns. On a CPU it is of processor times.
    """

    names: tuple[str, ...] = ("cv_vae", "od_vae", "opensora_v12", "cogvideox", "wan")
    """Models to compare, of those that `--vae` takes."""
    dim: int = 64
    """Width of IV-VAE; the others are as much narrower than published as it is than released (64).
    """
    frames: int = 9
    """Of the video that is timed; 1 + 8n suit all of `names`."""
    height: int = 32
    """Of the video that is timed, pixels; the paper has 720."""
    width: int = 32
    """Likewise; the paper has 1280."""
    repeats: Annotated[int, Ge(1)] = 3
    """Turns that count, after one that does not."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of weights and video."""
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.names) - set(COMPARATORS):
            raise ValueError(f"names {sorted(unknown)}: use some of {', '.join(COMPARATORS)}")


def run(config: Comparison) -> None:
    """Print the table, one row as soon as it is measured."""
    device = describe_device(torch.device(config.device))
    print(
        f"Operations at {'x'.join(map(str, COUNTED))}; times of {config.frames}x{config.height}x"
        f"{config.width} in {config.precision} on {device['device']}, "
        f"{device['threads'] or 'no'} threads, relative to IV-VAE's (z 16).\n"
    )
    print("| VAE | latent channels | parameters, M | MACs enc / dec, T | encode | decode |")
    print("|---|---|---|---|---|---|")
    ours = VAEConfig(dim=config.dim)
    counts = count_macs(VideoVAE, ours, *COUNTED)
    parameters = count_parameters(VideoVAE, ours)
    print(_row("IV-VAE", ours.z_dim, parameters, counts, (1.0, 1.0)), flush=True)
    for name in config.names:
        kind = COMPARATORS[name]
        z_dim = published_config(name).z_dim
        made = comparator_config(name, VAEConfig(z_dim=z_dim, dim=config.dim))
        counts = count_macs(kind, made, *COUNTED)
        times = _ratios(config, kind(made))
        parameters = count_parameters(kind, made)
        print(_row(kind.title, z_dim, parameters, counts, times), flush=True)


def _row(
    title: str, z_dim: int, parameters: int, counts: tuple[Macs, Macs], times: tuple[float, float]
) -> str:
    operations = " / ".join(f"{(m.convolution + m.attention) / 1e12:.2f}" for m in counts)
    ratios = " | ".join(f"{ratio:.2f}" for ratio in times)
    return f"| {title} | {z_dim} | {parameters / 1e6:.1f} | {operations} | {ratios} |"


@torch.inference_mode()
def _ratios(config: Comparison, model: VideoAutoencoder) -> tuple[float, float]:
    """(encode, decode): the model's time over that of IV-VAE, with random weights."""
    ours = VideoVAE(VAEConfig(dim=config.dim))
    dtype = getattr(torch, config.precision)
    shape = (1, 3, config.frames, config.height, config.width)
    video = torch.rand(shape, device=config.device, dtype=dtype) * 2 - 1
    encoders, decoders = [], []
    for vae in (ours, model):
        vae.to(config.device, dtype).eval()
        z = vae.encode(video).mean.to(dtype)
        encoders.append(lambda vae=vae: vae.encode(video))
        decoders.append(lambda vae=vae, z=z: vae.decode(z, size=video.shape[2:]))
        decoders[-1]()
    ratios = []
    for pair in (encoders, decoders):
        seconds = seconds_in_turns(pair, config.repeats, lambda: clock(config.device))
        ratios.append(median(theirs / ours for ours, theirs in zip(*seconds, strict=True)))
    return ratios[0], ratios[1]


if __name__ == "__main__":
    main(Comparison, run)
