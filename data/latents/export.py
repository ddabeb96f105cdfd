"""Latent caches as webdataset tars, for people who share data in that form."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.files import atomic_path
from common.output_folder import Input, lock_folder, write_identity
from data.latents.dataset import MANIFEST, LatentDataset
from data.shards.tars import TarWriter


def export_latents(latents: LatentDataset, out: str | Path, *, progress: bool = True) -> list[Path]:
    """Write one tar per shard of a cache; run it again to go on. The same cache gives equal bytes.

    A sample holds `npy`, the moments as stored (float16 `2c t h w`: mean, then log-variance, raw);
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
        bar = tqdm(latents.shard_sizes, unit="shard", desc="export", disable=not progress)
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
