"""The paper's figures from our runs, as PNG and PDF."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from common.accelerator import make_accelerator
from common.cli import main
from data.video.encode import from_uint8, to_uint8
from eval.report import plots
from eval.results.run_figures import (
    FRAMES,
    ClipOptions,
    Comparison,
    FigureConfig,
    Positions,
    Preservation,
    Samples,
)
from vae import VideoVAE
from vae.registry import load_vae
from vae.visual import latent_maps, unselected_frames


@dataclass(frozen=True, kw_only=True)
class Caption(ClipOptions):
    """A caption that appears inside a frame group, reconstructed (supplement, Fig. 7)."""

    vae: list[str]
    """VAEs, one flag each, as for eval_reconstruction; `label=...` names its row."""
    start: Annotated[int, Ge(0)] = 2
    """First frame with the caption; 1 is the first frame of the first group of 4."""
    text: str = "SUDDEN CAPTION 0123"
    """What it says."""

    def draw(self) -> plots.Figure:
        clip = plots.with_caption(to_uint8(self.clip()[0]), self.start, self.text)
        device = make_accelerator().device
        x = from_uint8(clip)[None].to(device)
        clips = {"source": clip}
        for given in self.vae:
            label, _, source = given.rpartition("=")
            y = load_vae(source).to(device).reconstruct(x)
            clips[label or Path(source).name] = to_uint8(y[0].clamp(-1, 1).cpu())
        h, w = clip.shape[1:3]
        return plots.comparison(clips, range(1, FRAMES), (h * 3 // 4, w * 3 // 8, h // 4, w // 4))


@dataclass(frozen=True, kw_only=True)
class Latents(ClipOptions):
    """Latent channels of one frame group, normalized by Eq. 6 (supplement, Fig. 10)."""

    vae: str
    """Folder or hub id of a video VAE of ours."""
    frame: Annotated[int, Ge(0)] = 1
    """Latent frame; 1 is the first group of 4 frames."""

    def draw(self) -> plots.Figure:
        vae, x = _ours(self)
        maps = latent_maps(vae.encode(x).mode())
        if self.frame >= maps.shape[2]:
            raise ValueError(f"frame={self.frame} must be in 0 to {maps.shape[2] - 1}")
        ratio = vae.config.temporal_ratio
        last = ratio * self.frame  # the image frame stands alone
        group = list(to_uint8(x[0]))[max(0, last - ratio + 1) : last + 1]
        return plots.latent_channels(maps[0].float().cpu().numpy(), self.frame, group)


@dataclass(frozen=True, kw_only=True)
class Unselected(ClipOptions):
    """What each branch makes of the frames that are not taken from it (supplement, Fig. 2)."""

    vae: str
    """Folder or hub id of a video VAE of ours with two branches."""

    def draw(self) -> plots.Figure:
        vae, x = _ours(self)
        z = vae.encode(x).mode()
        other = unselected_frames(vae.decode_branches(z), vae.config)
        clips = {"source": x, "reconstruction": vae.decode(z), "unselected": other}
        rows = {name: list(to_uint8(v[0].clamp(-1, 1).cpu())) for name, v in clips.items()}
        return plots.picture_grid(rows, [f"frame {i}" for i in range(FRAMES)])


def _ours(config: Latents | Unselected) -> tuple[VideoVAE, Float[Tensor, "1 3 t h w"]]:
    device = make_accelerator().device
    return VideoVAE.from_pretrained(config.vae).to(device), config.clip().to(device)


@torch.inference_mode()
def run(config: FigureConfig) -> None:
    """Draw one figure and say where it is."""
    print("wrote", *plots.save_figure(config.draw(), config.out))


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
