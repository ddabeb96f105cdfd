"""What a latent cache holds: in numbers, as pictures, beside its clips, and as webdataset tars."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.files import atomic_path
from common.output_folder import Input, lock_folder, write_identity
from common.pixels import to_float
from common.psnr import psnr_from_mse
from data.clips.dataset import ClipDataset, PackedClips
from data.clips.options import Cut
from data.latents.dataset import MANIFEST, LatentDataset
from data.shards.tars import TarWriter
from data.video.encode import to_uint8, write_video

Source = Callable[[int], UInt8[Tensor, "3 t h w"]]
"""The clip behind a latent, by the latent's index."""


def description(latents: LatentDataset) -> list[str]:
    """Lines that tell what a cache holds: counts, sizes, statistics per channel, classes."""
    manifest = latents.manifest
    source, statistics = manifest["source"], manifest["statistics"]
    names = ("videos", "too_short", "items", "failures")
    counts = Counter(latents.label(i) for i in range(len(latents)))
    channels = zip(statistics["mean"], statistics["std"], strict=True)
    return [
        f"{latents.folder}: " + ", ".join(f"{manifest['totals'][n]} {n}" for n in names),
        f"  latents {'x'.join(map(str, latents.latent_shape))} of {source['frames']} frames at "
        f"stride {source['stride']}, {source['height']}x{source['width']} pixels",
        f"  VAE {manifest['vae']['class']}, encoder {latents.encoder_hash[:12]}, source "
        f"{source['hash'][:12]}",
        *(f"  channel {i:2}: mean {m:8.4f}, std {s:8.4f}" for i, (m, s) in enumerate(channels)),
        *(f"  class {name}: {counts[label]}" for label, name in enumerate(latents.class_names)),
        *([f"  unlabeled: {counts[-1]}"] if counts[-1] else []),
    ]


def clips_behind(latents: LatentDataset, folder: str) -> Source:
    """The clips that a cache was made from.

    Args:
        folder: of their shards.

    Raises:
        ValueError: other shards than those.
    """
    made = latents.manifest["source"]
    others = ("hash", "crop", "decoder")
    options = {name: value for name, value in made.items() if name not in others}
    clips = ClipDataset(PackedClips(folder=folder, **options), seed=0)
    if clips.hash != made["hash"]:
        raise ValueError(
            f"{folder}: not what {latents.folder} was made from "
            f"({clips.hash[:12]}, not {made['hash'][:12]})"
        )
    numbers = {clips.key(i): i for i in range(len(clips))}

    def clip(index: int) -> UInt8[Tensor, "3 t h w"]:
        item = latents.raw(index)
        name = item["key"].removesuffix(":flip").rsplit(":", 1)[0]
        return clips.clip(numbers[name], Cut(item["start"], flip=item["flip"]))

    return clip


def draw_grid(
    latents: LatentDataset,
    indices: Sequence[int],
    decode: Callable[[Float[Tensor, "1 c t h w"]], Float[Tensor, "1 3 t2 h2 w2"]],
    source: Source | None,
    out: Path,
) -> list[str]:
    """Show decoded latents, one per column, below the clips that they were made from.

    Args:
        latents: the cache.
        indices: which of its latents.
        decode: raw latents to a clip.
        source: the clips; None shows decoded latents alone.
        out: folder for grid.mp4 and, with the first, middle and last frames, grid.png.

    Returns: lines that say what each column shows and, with a source, its PSNR.
    """
    columns, lines = [], []
    for index in indices:
        decoded = decode(latents.draw(0, index)[0][None])[0].clamp(-1, 1)  # c t h w
        above = [] if source is None else [to_float(source(index))]
        columns.append(torch.cat([*above, decoded], dim=2))
        mses = [(clip - decoded).square().mean() for clip in above]
        quality = "".join(f", {psnr_from_mse(mse, peak=2).item():.2f} dB" for mse in mses)
        lines.append(f"  column {len(columns)}: {latents.raw(index)['key']}{quality}")
    frames = to_uint8(torch.cat(columns, dim=3))
    write_video(out / "grid.mp4", frames, latents.manifest["frame_rate"])
    rows = frames[sorted({0, len(frames) // 2, len(frames) - 1})]
    with atomic_path(out / "grid.png") as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary)
    shown = "source above decoded" if source is not None else "decoded"
    return [*lines, f"{out}/grid.png and grid.mp4: {shown}, one latent per column"]


def export_latents(latents: LatentDataset, out: str | Path) -> list[Path]:
    """Write one tar per shard of a cache; run it again to go on. The same cache gives equal bytes.

    An item holds `npy`, the moments as stored (float16 `2c t h w`: mean, then log-variance, raw);
    `cls`, the label, where there is one; and `json` with label, class_name, start and flip. The
    cache's manifest, with the VAE's hash and the statistics, is copied beside the tars.

    Raises:
        ValueError: the folder holds the export of another cache, or is being written.
    """
    out = Path(out)
    with lock_folder(out):
        layout = {"layout": "npy: 2c t h w float16, mean | logvar"}
        inputs = {"latents": Input(str(latents.folder), latents.hash)}
        write_identity(out, layout, inputs, products=("*.tar",))
        with atomic_path(out / MANIFEST) as temporary:
            shutil.copyfile(latents.folder / MANIFEST, temporary)
        tars, first = [], 0
        bar = tqdm(latents.shard_sizes, unit="shard", desc="export")
        for number, size in enumerate(bar):
            tars.append(out / f"latents-{number:06d}.tar")
            if not tars[-1].exists():
                _write(latents, range(first, first + size), tars[-1])
            first += size
    return tars


def _write(latents: LatentDataset, items: range, path: Path) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        tar = TarWriter(file)
        for index in items:
            item = latents.raw(index)
            label = None if item["label"] < 0 else item["label"]
            array = io.BytesIO()
            np.save(array, item["moments"].numpy())
            tar.add(f"{item['key']}.npy", array.getvalue())
            if label is not None:
                tar.add(f"{item['key']}.cls", str(label).encode())
            facts = {
                "label": label,
                "class_name": None if label is None else latents.class_names[label],
                "start": item["start"],
                "flip": item["flip"],
            }
            tar.add(f"{item['key']}.json", json.dumps(facts).encode())
        tar.close()
