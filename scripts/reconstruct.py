"""Reconstruct held-out clips with a trained VAE and measure it beside trivial baselines."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.dataset import ClipConfig, ClipDataset
from data.encode import to_uint8, write_video
from engine.accelerator import make_accelerator
from engine.cli import main
from engine.files import write_json
from eval.baselines import keyframe_reconstruction, trilinear_reconstruction
from eval.reconstruction import ReconstructionMeter
from vae import VideoVAE, weights_hash


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Reconstruct clips with a VAE: PSNR, SSIM, information preservation, SSIM by position."""

    vae: str
    """Folder or hub id of the video VAE."""
    data: ClipConfig
    """Clips. What is measured is fixed: the middle of each video, unflipped, whatever start, crop
    and flip say."""
    out: str
    """Folder for metrics.json and, lossless, for source/, vae/, trilinear/ and keyframes/."""
    num_clips: int | None = None
    """Clips to measure; default: all."""
    save_clips: int = 8
    """Clips to write to those folders."""
    batch_size: int = 4
    """Clips at once."""

    def __post_init__(self) -> None:
        if (self.num_clips is not None and self.num_clips < 1) or self.batch_size < 1:
            raise ValueError(
                f"num_clips={self.num_clips} and batch_size={self.batch_size} must be at least 1"
            )


def run(config: Reconstruct) -> dict[str, Any]:
    """Write metrics.json and the clips; returns the metrics."""
    accelerator = make_accelerator()
    if accelerator.num_processes > 1:
        raise ValueError("reconstruct runs as one process; start it without accelerate launch")
    model = VideoVAE.from_pretrained(config.vae).to(accelerator.device)
    model.config.latent_shape(config.data.frames, config.data.height, config.data.width)
    data = replace(config.data, start="center", crop="center", flip=False)
    dataset = ClipDataset(data, seed=0)
    count = min(config.num_clips or len(dataset), len(dataset))
    ratio = {"temporal": model.config.temporal_ratio}

    def vae(x: Tensor) -> Tensor:
        return model.decode(model.encode(x.to(accelerator.device)).mode()).clamp(-1, 1).cpu()

    methods: dict[str, Callable[[Tensor], Tensor]] = {
        "vae": vae,
        "trilinear": lambda x: trilinear_reconstruction(
            x, **ratio, spatial=model.config.spatial_ratio
        ),
        "keyframes": lambda x: keyframe_reconstruction(x, **ratio),
    }
    meters = {name: ReconstructionMeter(model.config.temporal_ratio) for name in methods}
    saved: list[dict[str, Any]] = []
    with torch.no_grad(), tqdm(total=count, desc="reconstruct", unit="clip") as bar:
        for x in _videos(dataset, count, config.batch_size):
            results = {name: method(x) for name, method in methods.items()}
            for name, y in results.items():
                meters[name].update(x, y)
            for i in range(min(len(x), config.save_clips - len(saved))):
                saved.append(_describe(dataset, len(saved)))
                clips = {"source": x[i], **{name: y[i] for name, y in results.items()}}
                _save(Path(config.out), saved[-1]["name"], clips, dataset.frame_rate)
            bar.update(len(x))
    metrics = {
        "protocol": {**asdict(data), "clips": count, "data_hash": dataset.hash},
        "vae": {
            "source": config.vae,
            "sha256": weights_hash(model),
            "config": asdict(model.config),
        },
        "clips": saved,
        "metrics": {name: meter.compute() for name, meter in meters.items()},
    }
    write_json(Path(config.out) / "metrics.json", metrics)
    return metrics


def _videos(dataset: ClipDataset, count: int, batch_size: int) -> Iterator[Tensor]:
    """The first `count` clips, `b c t h w`; the last batch may be smaller."""
    for first in range(0, count, batch_size):
        indices = range(first, min(first + batch_size, count))
        yield torch.stack([dataset[(0, i)]["video"] for i in indices])


def _describe(dataset: ClipDataset, index: int) -> dict[str, Any]:
    sample = dataset.sample(index)
    label = sample.label
    return {
        "name": f"{index:06d}",
        "key": sample.key,
        "label": label,
        "class_name": None if label is None else dataset.class_names[label],
    }


def _save(folder: Path, name: str, clips: dict[str, Tensor], frame_rate: float) -> None:
    for kind, video in clips.items():
        write_video(folder / kind / f"{name}.mkv", to_uint8(video), frame_rate, codec="ffv1")


def report(metrics: dict[str, Any]) -> str:
    """A plain table for the terminal."""
    lines = [f"{'':12}{'PSNR':>8}{'SSIM':>8}{'info':>8}{'margin':>8}"]
    for name, values in metrics["metrics"].items():
        lines.append(
            f"{name:12}{values['psnr']:8.2f}{values['ssim']:8.4f}"
            f"{values['information_preservation']['[0,1]']:8.4f}"
            f"{values['ssim_by_position']['margin']:8.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(Reconstruct, lambda config: print(report(run(config))))
