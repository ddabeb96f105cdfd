"""Encode packed videos with a trained VAE once, so that Latte trains on latents."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from annotated_types import Ge, Lt
from torch import Tensor

from common.accelerator import inference_precision, make_accelerator
from common.cli import main
from common.config import Workers
from common.files import read_json
from common.output_folder import lock_folder
from common.pixels import to_float
from data.clips.dataset import ClipConfig, ClipDataset
from data.latents.items import CacheConfig
from data.latents.writer import LatentCache
from data.video.decode import Decoder
from vae.base import VideoAutoencoder
from vae.registry import load_vae, split_source, vae_hash

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class CacheLatents(CacheConfig):
    """Encode packed videos with a VAE once; run it again to go on where it stopped."""

    vae: str
    """Folder or hub id of the video VAE, or another's as name:where, such as
    cogvideox:THUDM/CogVideoX-2b."""
    data: str
    """Folder, or address, with index.json and the shards."""
    out: str
    """Folder of the cache."""
    frames: Annotated[int, Ge(1)] = 17
    """Frames per clip, 1 + 4n for the released VAE."""
    stride: Annotated[int, Ge(1)] = 3
    """Source frames from one clip frame to the next."""
    height: Annotated[int, Ge(1)] = 256
    """Clip height, pixels; a multiple of 8 for the released VAE."""
    width: Annotated[int, Ge(1)] = 256
    """Clip width, pixels; likewise."""
    short_clips: Literal["skip", "loop", "shrink_stride"] = "skip"
    """Videos shorter than a clip: left out; repeated from their start; or read at the largest
    stride that fits (left out where even 1 does not)."""
    filter: Literal["bilinear", "bicubic"] = "bicubic"
    """Kernel of the antialiased resize."""
    strict_decoding: bool = True
    """Refuse videos with damaged data; otherwise decoders hide it in grey or smeared frames."""
    decoder: Decoder = "pyav"
    """torchcodec, an optional package, takes less time and gives the same frames, with colors that
    differ by about a level; it needs strict_decoding=false."""
    max_error_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Fraction of videos that may fail to decode and be left out; 0 stops at once."""
    batch_size: Annotated[int, Ge(1)] = 8
    """Clips encoded at once on each device."""
    workers: Workers = 2
    """Decoding processes per device; 0 decodes between batches."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast of the encoder; "no" is float32, "auto" bf16 on a CUDA device and float32 elsewhere.
    The manifest says which it was."""


def run(config: CacheLatents) -> None:
    """Encode what is missing, then write the manifest; says so if nothing is."""
    config = replace(config, precision=inference_precision(config.precision))
    clips = ClipDataset(_pick(config, ClipConfig, folder=config.data, flip=False), seed=config.seed)
    accelerator = make_accelerator()
    model = load_vae(config.vae).to(accelerator.device)
    shape = model.config.latent_shape(config.frames, config.height, config.width)
    cache = LatentCache(
        config.out, clips, _describe(model, config), shape, _pick(config, CacheConfig)
    )
    with lock_folder(config.out, accelerator):
        todo = cache.pending(accelerator.process_index, accelerator.num_processes)
        pending = len(gather_object(todo))
        if done := cache.shards - pending:
            accelerator.print(
                f"{done} of {cache.shards} shards are there and their checksums match"
            )
        if pending or not cache.complete:
            _fill(cache, todo, pending, model, config, accelerator)
        else:
            accelerator.print(f"{config.out} is complete: nothing to do")
    accelerator.end_training()


def _fill(
    cache: LatentCache,
    todo: list[int],
    pending: int,
    model: VideoAutoencoder,
    config: CacheLatents,
    accelerator: Accelerator,
) -> None:
    """Make the shards `todo` of this process, of `pending` in all, and the manifest."""
    if accelerator.is_main_process:
        cache.begin(pending)
    accelerator.wait_for_everyone()

    @torch.inference_mode()
    def encode(video: Tensor) -> Tensor:
        device, dtype = accelerator.device.type, PRECISIONS[config.precision]
        with torch.autocast(device, dtype, enabled=config.precision != "no"):
            clips = to_float(video.to(accelerator.device, non_blocking=True))
            return model.encode(clips).moments

    timing = cache.write(
        encode,
        todo,
        batch_size=config.batch_size,
        workers=config.workers,
        progress=accelerator.is_main_process,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        totals = cache.finish()["totals"]
        print(f"{config.out}: " + ", ".join(f"{value} {name}" for name, value in totals.items()))
        shares = ", ".join(f"{name} {share:.0%}" for name, share in timing.shares.items())
        print(f"time of process 0: {shares} (decode and write: waiting for them)")


def _pick(config: CacheLatents, wanted: type, **others: Any) -> Any:
    """The part of `config` that `wanted` has fields for."""
    names = {field.name for field in fields(wanted)} - others.keys()
    return wanted(**{k: v for k, v in asdict(config).items() if k in names}, **others)


def _describe(model: VideoAutoencoder, config: CacheLatents) -> dict[str, Any]:
    training = Path(split_source(config.vae)[1]) / "training.json"  # step and EMA of our exports
    values = asdict(model.config)
    scaling = {name: list(values.pop(f"latent_{name}")) for name in ("mean", "std")}
    documented = scaling != {"mean": [0.0], "std": [1.0]}
    return {
        "class": type(model).__name__,
        "config": values,
        "sha256": vae_hash(model),
        "training": read_json(training) if training.exists() else None,
        "precision": config.precision,
        **({"scaling": scaling} if documented else {}),
    }


if __name__ == "__main__":
    main(CacheLatents, run)
