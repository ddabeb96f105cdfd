"""While training: scores and pictures of held-out reconstructions, and of a generator's samples."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from accelerate import Accelerator
from annotated_types import Ge, Le
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.config import MAY_CHANGE, BatchSize, Config
from common.pixels import to_float
from common.processes import even_share, share_batches
from data.clips.dataset import ClipConfig, ClipDataset
from data.video.encode import from_uint8, to_uint8, write_video
from engine.train import Evaluate, Preview
from engine.watch import show_pictures
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.extractors import full_precision, load_classifier, load_i3d
from eval.features.feature_cache import Extraction, extract_features, finite_features
from eval.features.metric_networks import NetworkConfig, mean_lpips
from eval.metrics.frechet import frechet_from_features
from eval.metrics.reconstruction import psnr, ssim, ssim_by_position
from eval.protocols.evaluate_reconstruction import Reconstruct
from eval.protocols.fvd import score_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(Config):
    """Held-out clips of a run, and what is measured and shown of them."""

    held_out: Annotated[ClipConfig | None, MAY_CHANGE] = None
    """Held-out clips, scored every train.evaluate_every steps; the middle of each video is taken.
    """
    num_held_out_clips: Annotated[int, Ge(1), MAY_CHANGE] = 16
    """Their number, the first of the data set."""
    metric_networks: Annotated[NetworkConfig, MAY_CHANGE] = NetworkConfig()  # noqa: RUF009 (frozen)
    """Networks for LPIPS and rFVD of held-out clips, besides PSNR and SSIM."""
    num_previews: Annotated[int, Ge(0), Le(1000), MAY_CHANGE] = 4
    """Clips shown side by side at every checkpoint, held-out ones if there are any; 0 for none. A
    stream has none to show."""


class HeldOut:
    """The first clips of a packed data set, always the same ones, and what scores them."""

    def __init__(self, clips: ClipDataset, count: int, group: int, networks: NetworkConfig):
        """Loads the networks, and logs in one line which are left out and why.

        Args:
            clips: without random choices.
            count: most clips to score.
            group: frames per group of the VAE; 1 for an image VAE.
        Raises:
            ValueError: a network that is asked for by name has no weights or takes no such clips.
        """
        size = clips.config
        self.clips = clips
        self.count = min(count, len(clips))
        self.group = group
        self.networks = networks.load(self.count, size.frames, size.height, size.width)
        self._features: np.ndarray | None = None  # of the clips themselves
        if self.networks.missing:
            log.info(
                "held-out clips are scored without %s; set it in metric_networks for the full "
                "error",
                ", ".join(f"{name} ({why})" for name, why in self.networks.missing.items()),
            )

    def clip(self, index: int, device: torch.device) -> Float[Tensor, "1 3 t h w"]:
        """One of the clips."""
        return to_float(self.clips[(0, index)]["video"][None].to(device))

    def evaluate_on(self, device: torch.device) -> Evaluate:
        """What the trainer calls with a model that has `reconstruct`."""
        return lambda model: self.scores(model.reconstruct, device)  # type: ignore[arg-type]

    def scores(self, reconstruct: Reconstruct, device: torch.device) -> dict[str, float]:
        """Means over frames and clips of everything that can be measured, in float32 without TF32.

        All processes share the clips, and get the same.

        Returns: "psnr" (dB) and "ssim"; "ssim_1" to "ssim_t" (at each position of a frame group)
            and "ssim_margin" (their largest difference; supplement, Table 5) where a clip has
            groups; "lpips_alex" and "lpips_vgg", and rFVD under its name with clips and frames,
            such as "rfvd16_17f", as far as there are networks.
        Raises:
            ValueError: a reconstruction without finite values.
        """
        networks, known = self.networks, self._features
        networks.to(device)

        def measured(
            numbers: range,
        ) -> tuple[Tensor, Tensor, dict[str, list[float]], np.ndarray, np.ndarray]:
            (i,) = numbers
            ids, where = [self.clips.key(i)], self.clips.config.folder
            video = self.clip(i, device)
            y = reconstruct(video)
            clamped = y.clamp(-1, 1)
            return (
                psnr(video, y).cpu(),
                ssim(video, y).cpu(),
                networks.lpips_by_clip(video, clamped),
                networks.features(clamped, ids, where),
                networks.features(video, ids, where) if known is None else known[i : i + 1],
            )

        with full_precision(device):
            found = share_batches(self.count, 1, measured)
        rows, similarities, lpips, features, sources = zip(*found, strict=True)
        self._features = np.concatenate(sources)
        similarity = torch.cat(similarities)  # clips t
        scores = {"psnr": torch.cat(rows).mean().item(), "ssim": similarity.mean().item()}
        scores |= mean_lpips(lpips)
        if self.group > 1 and similarity.shape[1] > 1:
            positions, margin = ssim_by_position(similarity, self.group)
            scores |= {f"ssim_{i}": value for i, value in enumerate(positions, start=1)}
            scores["ssim_margin"] = margin
        if networks.extractor is not None:
            name = "r" + score_name(networks.extractor, self.count, self.clips.config.frames)
            scores[name] = frechet_from_features(self._features, np.concatenate(features))
        return scores


def fixed_clips(config: ClipConfig) -> ClipDataset:
    """The clips of a packed data set without random choices: the middle of every video."""
    fixed = replace(config, start="center", crop="center", max_zoom=1.0, flip=False)
    return ClipDataset(fixed, seed=0)


def preview_reconstructions(
    clips: ClipDataset,
    count: int,
    show: Callable[[nn.Module, Float[Tensor, "1 3 t h w"]], Sequence[Float[Tensor, "1 3 t h w"]]],
    accelerator: Accelerator,
) -> Preview:
    """What shows the first clips side by side, in a file and where the log goes. The processes
    share the clips.

    Args:
        show: versions of a clip by the model, of one size; they stand below each other.
    """

    def write(model: nn.Module, raw: nn.Module, step: int, file: Path) -> None:
        def column(numbers: range) -> Tensor:
            (i,) = numbers
            rows = show(model, to_float(clips[(0, i)]["video"][None].to(accelerator.device)))
            return torch.cat(list(rows), dim=3)[0].clamp(-1, 1).cpu()  # 3 t (rows h) w

        columns = share_batches(min(count, len(clips)), 1, column)
        if accelerator.is_main_process:
            frames = to_uint8(torch.cat(columns, dim=3))
            write_video(file, frames, clips.frame_rate)
            show_pictures(accelerator, "preview", frames[:: max(1, len(frames) - 1)], step)

    return write


@dataclass(frozen=True, kw_only=True)
class SampleFVDConfig(Config):
    """A curve of the Fréchet distance of a few samples. Few samples make it larger than the usual
    FVD, so its name holds their number: only values of one name compare."""

    real: str
    """Folder of the real clips: shards or videos."""
    num_clips: Annotated[int, Ge(2)] = 64
    """Samples, at least 2."""
    num_real_clips: Annotated[int, Ge(2)] = 2048
    """Real clips at most, one per video."""
    batch_size: BatchSize = 8
    """Clips drawn and scored at once."""
    i3d: str | None = None
    """I3D's weights file; null looks at IVVAE_I3D, weights/ and ~/.cache/ivvae/."""
    classifier: str | None = None
    """Folder of a trained classifier to take instead of I3D; the score is named after it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.i3d is not None and self.classifier is not None:
            raise ValueError("fvd: give i3d or classifier, not both")


class SampleFVD:
    """The real clips, the network, and the distance of samples to them.

    Args:
        config: how many, of what, by which network.
        clip: `frames`, `stride`, `height` and `width` of a generated clip, in frames of the real
            videos.

    Raises:
        ValueError: no real clips, no weights, or clips that the network does not take.
    """

    def __init__(self, config: SampleFVDConfig, clip: Mapping[str, Any]):
        frames = clip["frames"]
        self.config = config
        given = config.classifier
        self.extractor = load_classifier(given) if given else load_i3d("i3d_tf", config.i3d)
        if frames < self.extractor.min_frames:
            raise ValueError(
                f"fvd: clips of {frames} frames, but {self.extractor.name} needs at least "
                f"{self.extractor.min_frames}"
            )
        self.real = ClipSource(
            config.real,
            ClipProtocol(
                frames=frames,
                stride=clip["stride"],
                num_clips=config.num_real_clips,
                height=clip["height"],
                width=clip["width"],
            ),
        )
        self.name = score_name(self.extractor, config.num_clips, frames)
        self._features: np.ndarray | None = None  # of the real clips

    def prepare(self, device: torch.device, cache: Path) -> None:
        """Describe the real clips, in all processes together, or read what `cache` has of them."""
        how = Extraction(batch_size=self.config.batch_size, device=device, cache=cache)
        self._features = extract_features(self.real, self.extractor, how).values

    def score(self, draw: Callable[[range], Float[Tensor, "b 3 t h w"]]) -> dict[str, float]:
        """The distance, under a name such as fvd64_17f; after `prepare`. All processes share it.

        Args:
            draw: samples of these numbers, in [-1, 1]. They are rounded to 8 bits, as files are.

        Raises:
            ValueError: a sample that is not finite.
        """
        assert self._features is not None, "prepare first"

        def features(numbers: range) -> np.ndarray:
            clips = draw(numbers)
            if not clips.isfinite().all():
                raise ValueError("samples have values that are not finite")
            self.extractor.to(clips.device)
            stored = torch.stack([from_uint8(to_uint8(clip.cpu())) for clip in clips])
            ids = [f"sample {i}" for i in numbers]
            return finite_features(self.extractor, stored.to(clips.device), ids, "samples")

        count = self.config.num_clips
        batch_size = min(self.config.batch_size, even_share(count))
        parts = share_batches(count, batch_size, features)
        return {self.name: frechet_from_features(self._features, np.concatenate(parts))}


def preview_samples(
    draw: Callable[[nn.Module, range], Float[Tensor, "b 3 t h w"]],
    count: int,
    frame_rate: float,
    accelerator: Accelerator,
) -> Preview:
    """What shows the first samples side by side: above by the averaged weights, below by the raw
    ones. The processes share the samples.

    Args:
        draw: samples of a model by their numbers, in [-1, 1].
        frame_rate: Hz.
    """

    def write(averaged: nn.Module, raw: nn.Module, step: int, file: Path) -> None:
        def pairs(numbers: range) -> Tensor:
            return torch.stack([draw(model, numbers).cpu() for model in (averaged, raw)])

        clips = torch.cat(share_batches(count, even_share(count), pairs), dim=1)
        if accelerator.is_main_process:
            frames = rearrange(clips, "j i c t h w -> c t (j h) (i w)")
            write_video(file, to_uint8(frames), frame_rate)

    return write
