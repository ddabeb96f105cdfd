"""The paper's figures from our runs, as PNG and PDF."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, MinLen
from jaxtyping import Float
from torch import Tensor

from common.accelerator import make_accelerator
from common.cli import main
from common.config import Config, Pixels
from data.video.encode import from_uint8, to_uint8
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.report import plots, run_figures
from vae import VideoVAE
from vae.registry import load_vae
from vae.visual import latent_maps, unselected_frames

Place = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Comparison(Config):
    """Reconstructions side by side, with enlarged boxes and error maps (supplement, Figs. 3 to 6).

    Choose consecutive frames for long sequences; evaluate with --stride 3 for fast motion.
    """

    run: str
    """Folder that eval_reconstruction wrote."""
    out: str
    """File to write, with the endings .png and .pdf."""
    clip: str = "000000"
    """Name of a saved clip."""
    methods: list[str] = field(default_factory=list)
    """Rows, one flag each; by default every method."""
    frames: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (0, 1, 2, 3, 4)
    """Columns."""
    box: tuple[Place, Place, Place, Place] | None = None
    """What to enlarge: top, left, height, width, pixels; null takes the middle quarter."""
    gain: Annotated[float, Gt(0)] | None = None
    """Factor of the error maps; null chooses a power of two for all rows."""


@dataclass(frozen=True, kw_only=True)
class ClipOptions(Config):
    """Which clip a figure shows."""

    data: str
    """Folder of shards, videos or folders of frames."""
    out: str
    """File to write, with the endings .png and .pdf."""
    id: str | None = None
    """Id of the video; null takes the first in order of a seeded draw."""
    height: Pixels = 256
    """Pixels."""
    width: Pixels = 256
    """Pixels."""


@dataclass(frozen=True, kw_only=True)
class Caption(ClipOptions):
    """A caption that appears inside a frame group, reconstructed (supplement, Fig. 7)."""

    vae: list[str]
    """VAEs, one flag each, as for eval_reconstruction; `label=...` names its row."""
    start: Annotated[int, Ge(0)] = 2
    """First frame with the caption; 1 is the first frame of the first group of 4."""
    text: str = "SUDDEN CAPTION 0123"
    """What it says."""


@dataclass(frozen=True, kw_only=True)
class Latents(ClipOptions):
    """Latent channels of one frame group, normalized by Eq. 6 (supplement, Fig. 10)."""

    vae: str
    """Folder or hub id of a video VAE of ours."""
    frame: Annotated[int, Ge(0)] = 1
    """Latent frame; 1 is the first group of 4 frames."""


@dataclass(frozen=True, kw_only=True)
class Unselected(ClipOptions):
    """What each branch makes of the frames that are not taken from it (supplement, Fig. 2)."""

    vae: str
    """Folder or hub id of a video VAE of ours with two branches."""


@dataclass(frozen=True, kw_only=True)
class Positions(Config):
    """SSIM by position in the frame group, beside the paper's (supplement, Fig. 1 and Table 5)."""

    run: list[str]
    """Folders that eval_reconstruction wrote, one flag each."""
    out: str
    """File to write, with the endings .png and .pdf."""


@dataclass(frozen=True, kw_only=True)
class Preservation(Config):
    """Information preservation degree against latent channels (paper, Fig. 1)."""

    run: list[str]
    """Folders that eval_reconstruction wrote, one flag each."""
    out: str
    """File to write, with the endings .png and .pdf."""
    pixels: Literal["[-1,1]", "[0,1]"] = "[-1,1]"
    """Range of the pixels in Eq. 2: [-1,1] or [0,1]."""


@dataclass(frozen=True, kw_only=True)
class Samples(Config):
    """Frames of generated clips, one clip per row (supplement, Figs. 8 and 9)."""

    data: list[str]
    """Folders of generated videos, one flag each: one per VAE."""
    out: str
    """File to write, with the endings .png and .pdf."""
    num_clips: Annotated[int, Ge(1)] = 3
    """Rows of each folder."""
    frames: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (0, 4, 8, 12, 16)
    """Columns."""


FigureConfig = Comparison | Caption | Latents | Unselected | Positions | Preservation | Samples
FRAMES = 5  # an image frame and one group


def run(config: FigureConfig) -> None:
    """Draw one figure and say where it is."""
    match config:
        case Comparison(run=folder, clip=clip, methods=methods):
            drawn = run_figures.comparison(
                Path(folder), clip, methods, config.frames, config.box, config.gain
            )
        case Positions(run=runs):
            drawn = run_figures.positions(runs)
        case Preservation(run=runs, pixels=pixels):
            drawn = run_figures.preservation(runs, pixels)
        case Samples(data=folders, frames=frames):
            drawn = run_figures.samples(folders, config.num_clips, frames)
        case Caption():
            drawn = _caption(config)
        case Latents():
            drawn = _latents(config)
        case Unselected():
            drawn = _unselected(config)
    print("wrote", *plots.save_figure(drawn, config.out))


def _caption(config: Caption) -> plots.Figure:
    clip = plots.with_caption(to_uint8(_clip(config)[0]), config.start, config.text)
    device = make_accelerator().device
    x = from_uint8(clip)[None].to(device)
    clips = {"source": clip}
    for given in config.vae:
        label, _, source = given.rpartition("=")
        vae = load_vae(source).to(device)
        with torch.inference_mode():
            y = vae.reconstruct(x)
        clips[label or Path(source).name] = to_uint8(y[0].clamp(-1, 1).cpu())
    h, w = clip.shape[1:3]
    return plots.comparison(clips, range(1, FRAMES), (h * 3 // 4, w * 3 // 8, h // 4, w // 4))


def _latents(config: Latents) -> plots.Figure:
    vae, x = _ours(config.vae, config)
    with torch.inference_mode():
        maps = latent_maps(vae.encode(x).mode())
    if not 0 <= config.frame < maps.shape[2]:
        raise ValueError(f"frame={config.frame} must be in 0 to {maps.shape[2] - 1}")
    ratio = vae.config.temporal_ratio
    last = ratio * config.frame  # the image frame stands alone
    group = list(to_uint8(x[0]))[max(0, last - ratio + 1) : last + 1]
    return plots.latent_channels(maps[0].float().cpu().numpy(), config.frame, group)


def _unselected(config: Unselected) -> plots.Figure:
    vae, x = _ours(config.vae, config)
    with torch.inference_mode():
        z = vae.encode(x).mode()
        other = unselected_frames(vae.decode_branches(z), vae.config)
        clips = {"source": x, "reconstruction": vae.decode(z), "unselected": other}
    rows = {name: list(to_uint8(v[0].clamp(-1, 1).cpu())) for name, v in clips.items()}
    return plots.picture_grid(rows, [f"frame {i}" for i in range(FRAMES)])


def _ours(source: str, config: ClipOptions) -> tuple[VideoVAE, Float[Tensor, "1 3 t h w"]]:
    device = make_accelerator().device
    return VideoVAE.from_pretrained(source).to(device), _clip(config).to(device)


def _clip(config: ClipOptions) -> Float[Tensor, "1 3 t h w"]:
    """The middle of the video."""
    protocol = ClipProtocol(
        frames=FRAMES,
        start="center",
        num_clips=None if config.id else 1,
        height=config.height,
        width=config.width,
    )
    source = ClipSource(config.data, protocol)
    if config.id is not None and config.id not in source.ids:
        raise ValueError(f"{config.data}: no video {config.id!r} of at least {FRAMES} frames")
    return source[source.ids.index(config.id) if config.id else 0][1][None]


if __name__ == "__main__":
    figures = {
        "comparison": Comparison,
        "caption": Caption,
        "latents": Latents,
        "unselected": Unselected,
        "positions": Positions,
        "preservation": Preservation,
        "samples": Samples,
    }
    main(figures, run)
