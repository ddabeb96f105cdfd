"""Encode packed videos with a trained VAE once, so that Latte trains on latents."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor

from common.accelerator import inference_precision, make_accelerator
from common.cli import main
from common.config import BatchSize, Workers
from common.files import read_json
from common.output_folder import in_main_process, lock_folder
from common.pixels import to_float
from data.clips.dataset import ClipDataset, PackedClips
from data.latents.shards import CacheConfig
from data.latents.writer import LatentCache
from vae.base import VideoAutoencoder
from vae.parts import encoder_hash
from vae.registry import load_vae, split_source

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class CacheLatents(CacheConfig):
    """Encode packed videos with a VAE once; run it again to go on where it stopped."""

    vae: str
    """Folder or hub id of the video VAE, or another's as name:where, such as
    cogvideox:THUDM/CogVideoX-2b."""
    data: PackedClips
    """Which clips: 1 + 4n frames and sides in multiples of 8 for the released VAE."""
    out: str
    """Folder of the cache."""
    batch_size: BatchSize = 8
    """Clips encoded at once on each device."""
    workers: Workers = 2
    """Decoding processes per device; 0 decodes between batches."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast of the encoder; "no" is float32, "auto" bf16 on a CUDA device and float32 elsewhere.
    The manifest says which it was."""


def run(config: CacheLatents) -> None:
    """Encode what is missing, then write the manifest; says so if nothing is."""
    precision = inference_precision(config.precision)
    data, clips = config.data, ClipDataset(config.data, config.seed)
    accelerator = make_accelerator()
    model = load_vae(config.vae).to(accelerator.device)
    shape = model.config.latent_shape(data.frames, data.height, data.width)
    vae = _describe(model, config.vae) | {"precision": precision}
    cache = LatentCache(config.out, clips, vae, shape, config)

    @torch.inference_mode()
    def encode(video: Tensor) -> Tensor:
        device, dtype = accelerator.device, DTYPES[precision]
        with torch.autocast(device.type, dtype, enabled=precision != "no"):
            return model.encode(to_float(video)).moments

    with lock_folder(config.out, accelerator):
        todo = cache.pending(accelerator.process_index, accelerator.num_processes)
        pending = len(gather_object(todo))
        if done := cache.shards - pending:
            accelerator.print(
                f"{done} of {cache.shards} shards are there and their checksums match"
            )
        if cache.complete and not pending:
            accelerator.print(f"{config.out} is complete: nothing to do")
        else:
            in_main_process(lambda: cache.begin(pending), accelerator)
            timing = cache.write(
                *(encode, todo),
                device=accelerator.device,
                batch_size=config.batch_size,
                workers=config.workers,
                progress=accelerator.is_main_process,
            )
            accelerator.wait_for_everyone()
            totals = in_main_process(cache.finish, accelerator)["totals"]
            accelerator.print(
                f"{config.out}: " + ", ".join(f"{count} {name}" for name, count in totals.items())
            )
            shares = ", ".join(f"{name} {share:.0%}" for name, share in timing.shares.items())
            accelerator.print(f"time of process 0: {shares} (decode and write: waiting for them)")
    accelerator.end_training()


def _describe(model: VideoAutoencoder, source: str) -> dict[str, Any]:
    """The VAE, for the manifest: what it is, its weights, and their training if it is ours."""
    training = Path(split_source(source)[1]) / "training.json"
    values = asdict(model.config)
    scaling = {name: list(values.pop(f"latent_{name}")) for name in ("mean", "std")}
    documented = scaling != {"mean": [0.0], "std": [1.0]}
    return {
        "class": type(model).__name__,
        "config": values,
        "encoder_sha256": encoder_hash(model),
        "training": read_json(training) if training.exists() else None,
        **({"scaling": scaling} if documented else {}),
    }


if __name__ == "__main__":
    main(CacheLatents, run)
