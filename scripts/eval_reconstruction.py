"""How well VAEs reconstruct held-out clips, beside trivial baselines and the paper's numbers."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from common.accelerator import make_accelerator
from common.cli import main
from common.config import BatchSize, Frames, Pixels
from common.files import write_json
from common.output_folder import Input, lock_folder, remove_temporary, write_identity
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.extractors import full_precision
from eval.features.metric_networks import NetworkConfig
from eval.metrics.baselines import keyframe_reconstruction, trilinear_reconstruction
from eval.protocols.cost import measure_cost
from eval.protocols.evaluate_reconstruction import Reconstruct, evaluate_autoencoders, notes_on
from eval.protocols.measurement import Measurement, add_result, check_out
from eval.report.reconstruction_tables import reconstruction_tables, write_clips, write_tables
from eval.report.tables import to_text
from vae import weights_hash
from vae.base import VideoAutoencoder
from vae.comparators.base import InferenceWindows
from vae.complexity import count_macs
from vae.parts import vae_hash
from vae.registry import load_found, named_sources

MACS_SIZE = (17, 512, 512)  # frames, height and width of the supplement's Table 3


@dataclass(frozen=True, kw_only=True)
class EvalReconstruction(NetworkConfig, Measurement):
    """Reconstruct clips with VAEs and measure quality and cost, beside trivial baselines.

    Writes metrics.json, tables.md, tables.tex, one CSV file per table and clips.csv, each clip's
    scores. The paper's numbers stand in gray beside the measured ones; they were measured on other
    clips.
    """

    vae: list[str]
    """VAEs, one flag each: a folder or hub id of ours, or another's as name:path, such as
    cogvideox:THUDM/CogVideoX-2b. `label=...` before it names its row. Of several, those whose
    weights are not found get rows that say what to put where, and no number."""
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
    """Measure trilinear down- and upsampling and repeated keyframes, too."""
    windows: InferenceWindows = "official"
    """Run VAEs of others in the windows of their authors' inference, or in a single one for the
    whole clip, which changes the result of most."""
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
        if not self.vae:
            raise ValueError("vae=[] must name at least one VAE to measure")
        if self.frames < 1 + self.group or (self.frames - 1) % self.group:
            raise ValueError(f"frames={self.frames} must be 1 + group * n with group={self.group}")


def run(config: EvalReconstruction) -> dict[str, Any]:
    """Check, measure, write; returns what metrics.json holds."""
    check_out(config)
    with lock_folder(config.out):
        return _run(config)


def _run(config: EvalReconstruction) -> dict[str, Any]:
    accelerator = make_accelerator()
    if accelerator.num_processes > 1:
        raise ValueError("start it without torchrun or accelerate launch: one process does it all")
    device = accelerator.device if config.device == "auto" else torch.device(config.device)
    sources = named_sources(config.vae, taken=("source",))
    vaes, missing = load_found(sources, windows=config.windows)
    for vae in vaes.values():
        vae.to(device).eval()
    protocol = ClipProtocol(
        frames=config.frames,
        stride=config.stride,
        start="center",
        num_clips=config.num_clips,
        seed=config.seed,
        height=config.height,
        width=config.width,
    )
    source = ClipSource(config.data, protocol, on_error=config.on_error)
    _check_sizes(config, vaes, source.size)
    networks = config.load(len(source), config.frames, *source.size)
    methods = {label: _reconstruct(vae) for label, vae in vaes.items()}
    if config.baselines:
        methods |= _baselines(next(iter(vaes.values())), config.group)
    write_identity(
        config.out,
        {"group": config.group, "baselines": config.baselines},
        {
            "data": Input(config.data, source.content()),
            **{label: Input(sources[label], vae_hash(vae)) for label, vae in vaes.items()},
        },
        products=("source", "metrics.json"),
    )
    for name in ("source", *methods):
        remove_temporary(Path(config.out) / name)
    scores = evaluate_autoencoders(
        source,
        methods,
        group=config.group,
        lpips=networks.lpips,
        extractor=networks.extractor,
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        save=config.save_clips,
        folder=config.out,
    )
    by_clip = {name: score.pop("by_clip") for name, score in scores.items()}
    described = {
        label: _describe(config, sources[label], vae, device) for label, vae in vaes.items()
    }
    result = {
        "kind": "reconstruction",
        "protocol": {
            **source.describe(),
            "size": source.size,
            "group": config.group,
            "precision": "float32 without TF32",
            "lpips": {p.name: p.sha256 for p in networks.lpips},
            "rfvd": networks.extractor.describe() if networks.extractor else None,
        },
        "methods": {name: described.get(name, {}) for name in methods},
        "missing": missing,
        "clips": [
            {"name": f"{i:06d}", "key": id, "scores": {m: s[i] for m, s in by_clip.items()}}
            for i, id in enumerate(source.ids[: config.save_clips])
        ],
        "metrics": scores,
        "notes": [
            *(f"{name} was not measured: {why}." for name, why in networks.missing.items()),
            *source.notes("source"),
            *notes_on(source, networks.extractor),
        ],
    }
    write_json(Path(config.out) / "metrics.json", result)
    write_tables(reconstruction_tables(result), Path(config.out))
    write_clips(source.ids, by_clip, Path(config.out) / "clips.csv")
    add_result(config, result, config.out)
    return result


def _check_sizes(
    config: EvalReconstruction, vaes: dict[str, VideoAutoencoder], size: tuple[int, int]
) -> None:
    """Before anything runs: every VAE takes the clips, and the size to time."""
    for label, vae in vaes.items():
        try:
            vae.config.latent_shape(config.frames, *size)
            if config.repeats:
                sizes = (config.cost_frames, config.cost_height, config.cost_width)
                vae.config.latent_shape(*sizes)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None


def _reconstruct(vae: VideoAutoencoder) -> Reconstruct:
    return lambda x: vae.decode(vae.encode(x).mode(), size=x.shape[2:])


def _baselines(vae: VideoAutoencoder, group: int) -> dict[str, Reconstruct]:
    spatial = vae.config.spatial_ratio
    return {
        "trilinear": lambda x: trilinear_reconstruction(x, temporal=group, spatial=spatial),
        "keyframes": lambda x: keyframe_reconstruction(x, temporal=group),
    }


def _describe(
    config: EvalReconstruction, source: str, vae: VideoAutoencoder, device: torch.device
) -> dict[str, Any]:
    macs = count_macs(type(vae), vae.config, *MACS_SIZE)
    shape = (config.cost_frames, config.cost_height, config.cost_width)
    cost = None
    if config.repeats:
        video = torch.rand(1, 3, *shape, device=device) * 2 - 1
        cost = _cost(vae, video, config) | {"size": "x".join(map(str, shape))}
    return {
        "source": source,
        "class": type(vae).__name__,
        "sha256": weights_hash(vae),
        "windows": None if vae.native_window is None else vae.config.windows,
        "native_window": vae.native_window,
        "config": asdict(vae.config),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "macs": sum(half.convolution for half in macs),
        "flops": 2 * sum(half.convolution + half.attention for half in macs),
        "cost": cost,
    }


def _cost(vae: VideoAutoencoder, video: Tensor, config: EvalReconstruction) -> dict[str, Any]:
    """In float32 without TF32, and under `bfloat16` by autocast to it."""

    def measure() -> dict[str, Any]:
        return measure_cost(
            lambda x: vae.encode(x).mode(),
            lambda z: vae.decode(z, size=video.shape[2:]),
            video,
            repeats=config.repeats,
            warmup=config.warmup,
        )

    with full_precision(video.device):
        exact = measure()
    with torch.autocast(video.device.type, torch.bfloat16):
        return exact | {"bfloat16": measure()}


def report(result: dict[str, Any]) -> str:
    """The tables for the terminal, then the notes."""
    tables = reconstruction_tables(result).values()
    return "\n\n".join(to_text(table, color=sys.stdout.isatty()) for table in tables)


if __name__ == "__main__":
    main(EvalReconstruction, lambda config: print(report(run(config))))
