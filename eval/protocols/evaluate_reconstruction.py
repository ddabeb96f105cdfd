"""Reconstructions of one set of clips by several methods, on the same frames, and their cost."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from common.config import BatchSize, Frames, Pixels
from common.machine import describe_device
from common.measure import peak_memory_bytes, reset_peak_memory
from data.video.encode import to_uint8, write_video
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.labels import read_labels, write_labels
from eval.clips.source import ClipSource
from eval.features.extractors import full_precision
from eval.features.metric_networks import NetworkConfig, Networks, mean_lpips
from eval.metrics.reconstruction import ReconstructionMeter
from eval.protocols.fvd import USUAL_CLIPS, distances, score_name
from eval.protocols.measurement import Measurement

Reconstruct = Callable[[Float[Tensor, "b 3 t h w"]], Float[Tensor, "b 3 t h w"]]
FRAME_RATE = 8.0  # Hz, of written clips where the source's is not known


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(NetworkConfig, Measurement):
    """Which clips are reconstructed, and what is measured."""

    data: str
    """Folder of shards, of videos, or of folders of frames: the clips."""
    out: str
    """Folder for the results and, lossless, for source/ and one folder of clips per method."""
    frames: Frames = 17
    """Frames per clip, from the middle of each video."""
    stride: Frames = 1
    """Video frames from one clip frame to the next."""
    height: Pixels | None = 256
    """Pixels; frames are resized to cover the size and cropped at the center. null keeps theirs."""
    width: Pixels | None = 256
    """See height."""
    num_clips: Annotated[int, Ge(1)] | None = None
    """Most clips, one per video; null takes every video."""
    group: Annotated[int, Ge(2)] = 4
    """Frames per group in SSIM by position and in flicker, for every method."""
    baselines: bool = True
    """Also measure trilinear down- and upsampling, and the last frame of each group repeated."""
    repeats: Annotated[int, Ge(0), Le(1000)] = 0
    """Timed runs of encoding and of decoding a clip of cost_frames x cost_height x cost_width; 0
    measures no time and no memory. On a CPU, choose a small size."""
    warmup: Annotated[int, Ge(0), Le(1000)] = 1
    """Runs before those, not counted."""
    cost_frames: Frames = 17
    """The supplement's Table 6 has 17 frames."""
    cost_height: Pixels = 720
    """Of Table 6, pixels."""
    cost_width: Pixels = 1280
    """Of Table 6, pixels."""
    batch_size: BatchSize = 4
    """Clips at once."""
    save_clips: Annotated[int, Ge(0)] = 8
    """Clips to write."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 1 + self.group or (self.frames - 1) % self.group:
            raise ValueError(f"frames={self.frames} must be 1 + group * n with group={self.group}")

    @property
    def cost_size(self) -> tuple[int, int, int] | None:
        """Frames, height and width of the clip that is timed."""
        sizes = (self.cost_frames, self.cost_height, self.cost_width)
        return sizes if self.repeats else None

    def clips(self) -> ClipSource:
        """The clips from the middle of the videos."""
        protocol = ClipProtocol(
            frames=self.frames,
            stride=self.stride,
            start="center",
            num_clips=self.num_clips,
            seed=self.seed,
            height=self.height,
            width=self.width,
        )
        return ClipSource(self.data, protocol, on_error=self.on_error)


def evaluate_reconstruction(
    config: ReconstructionConfig,
    source: ClipSource,
    methods: Mapping[str, Reconstruct],
    networks: Networks,
    device: torch.device,
) -> tuple[dict[str, Any], dict[str, list[dict[str, float]]]]:
    """Every metric of every method over the clips, in float32 without TF32.

    Writes `config.save_clips` clips losslessly into `config.out/<method>` and `config.out/source`,
    with a samples.json of their labels where these are known.

    Args:
        source: `config.clips()`.
        methods: name to a function that returns the reconstruction, on any device.
        networks: of LPIPS and of rFVD, the distance between features of clips and reconstructions,
            pooled over the whole set.
        device: where clips and networks are.

    Returns:
        What metrics.json holds but for the methods' descriptions: `protocol`, `clips`, `notes` and
        `metrics`, method to what `ReconstructionMeter.compute` gives, LPIPS under its name (mean
        over frames, then videos) and `rfvd` (`name`, and what `distances` gives). And method to
        `psnr` and `ssim` of each clip in order.

    Raises:
        ValueError: clips, reconstructions or features that cannot be measured.
    """
    meters = {name: ReconstructionMeter(config.group) for name in methods}
    by_clip: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    lpips: dict[str, list[dict[str, list[float]]]] = {name: [] for name in methods}
    features: dict[str, list[np.ndarray]] = {name: [] for name in ("source", *methods)}
    extractor, save, folder = networks.extractor, config.save_clips, Path(config.out)
    networks.to(device)
    bar = tqdm(total=len(source), desc="reconstruct", unit="clip")
    with bar, torch.inference_mode(), full_precision(device):
        for first, ids, clips in source.batches(config.batch_size, config.workers):
            x = clips.to(device)
            results = {"source": x}
            for name, method in methods.items():
                results[name] = y = method(x).to(device).clamp(-1, 1)
                batch = meters[name].update(x, y)
                rows = zip(*batch.values(), strict=True)
                by_clip[name] += [dict(zip(batch, row, strict=True)) for row in rows]
                lpips[name].append(networks.lpips_by_clip(x, y))
            for name, videos in results.items():
                features[name].append(networks.features(videos, ids, name))
                for i, video in enumerate(videos[: max(0, save - first)], first):
                    frames = to_uint8(video.cpu())
                    rate = source.rate or FRAME_RATE
                    write_video(folder / name / f"{i:06d}.mkv", frames, rate, codec="ffv1")
            bar.update(len(ids))

    # Labels, so that eval_is can tell what the clips show
    if save and (known := read_labels(source.folder)):
        files = {f"{i:06d}.mkv": known.labels.get(id) for i, id in enumerate(source.ids[:save])}
        labels = {file: label for file, label in files.items() if label is not None}
        for name in ("source", *methods) if labels else ():
            write_labels(folder / name, labels, known.class_names)

    # Scores
    scores = {name: meter.compute() | mean_lpips(lpips[name]) for name, meter in meters.items()}
    if extractor:
        title = "r" + score_name(extractor, len(source), config.frames)
        for name, score in scores.items():
            found = distances(*(np.concatenate(features[each]) for each in ("source", name)))
            score["rfvd"] = {"name": title, **found}
    notes = [f"{name} was not measured: {why}." for name, why in networks.missing.items()]
    notes += source.notes("source")
    if extractor and len(source) < USUAL_CLIPS:
        notes.append(
            f"rFVD of {len(source)} clips is biased upwards and only compares with scores of as "
            "many clips."
        )
    result = {
        "kind": "reconstruction",
        "protocol": {
            **source.describe(),
            "size": source.size,
            "group": config.group,
            "precision": "float32 without TF32",
            "lpips": {p.name: p.sha256 for p in networks.lpips},
            "rfvd": extractor.describe() if extractor else None,
        },
        "clips": [
            {"name": f"{i:06d}", "key": id, "scores": {m: s[i] for m, s in by_clip.items()}}
            for i, id in enumerate(source.ids[:save])
        ],
        "metrics": scores,
        "notes": notes,
    }
    return result, by_clip


@torch.inference_mode()
def measure_cost(
    config: ReconstructionConfig,
    encode: Callable[[Tensor], Any],
    decode: Callable[..., Tensor],
    device: torch.device,
) -> dict[str, Any] | None:
    """Median times and peak memory of encoding a video of noise and of decoding its latent, in
    float32 without TF32, and by autocast to bfloat16; None where they are not asked for.

    Args:
        config: size of the video, and how often.
        encode: video to a posterior, on `device`.
        decode: latent to a video of a `size`.

    Returns:
        `encode` and `decode` (median seconds), `encode_memory` and `decode_memory` (bytes at the
        peak: what PyTorch had allocated on a GPU, weights included; the whole process on a CPU),
        `bfloat16` (the same four), `size`, `device`, `threads` (of a CPU), `repeats`, `warmup`.
    """
    size, repeats, warmup = config.cost_size, config.repeats, config.warmup
    if size is None:
        return None
    video = torch.rand(1, 3, *size, device=device) * 2 - 1

    def measure() -> dict[str, Any]:
        latent, result = encode(video).mode(), {}
        calls = {
            "encode": lambda: encode(video).mode(),
            "decode": lambda: decode(latent, size=size),
        }
        for name, call in calls.items():
            for _ in range(warmup):
                call()
            reset_peak_memory(device)
            seconds = []
            for _ in range(repeats):
                started = _now(device)
                call()
                seconds.append(_now(device) - started)
            result[name] = statistics.median(seconds)
            result[f"{name}_memory"] = peak_memory_bytes(device)
        return result

    with full_precision(device):
        result = measure()
    with torch.autocast(device.type, torch.bfloat16):
        result["bfloat16"] = measure()
    described = {**describe_device(device), "size": "x".join(map(str, size))}
    return {**result, **described, "repeats": repeats, "warmup": warmup}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
