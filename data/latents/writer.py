"""Writing cached latents: whole shards per process, the same bytes however often it was stopped.

A cache is a folder with `data.latents.shards` and a manifest.json, which says what was encoded and
with what, and `complete` once all is there.
"""

import hashlib
import importlib.metadata
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.config import differences
from common.files import write_json
from common.measure import Timing
from data.clips.dataset import ClipDataset
from data.clips.loader import one_thread, start
from data.latents.dataset import MANIFEST, SCHEMA, read_manifest
from data.latents.items import CacheConfig, CacheItems
from data.latents.shards import LatentShards, ShardContent
from data.latents.statistics import merge_sums

LARGEST = 6e4  # float16 ends at 65504
PACKAGES = ("ivvae", "torch", "av", "numpy", "safetensors")

Encode = Callable[[UInt8[Tensor, "b 3 t h w"]], Float[Tensor, "b c2 t h w"]]


class LatentCache:
    """A latent cache being made.

    Every process builds one, asks for its `pending` shards and calls `write`; one process calls
    `begin` before all of them and `finish` after. The result does not depend on the number of
    processes, nor on how often the work was stopped. A clip that cannot be read is left out and
    listed under `failures`, never replaced.

    Args:
        folder: made if missing; holds one cache.
        clips: source; its frames, stride, size, `short_clips`, filter and limit of bad samples
            apply, while starts, flips and the central crop are decided here.
        vae: JSON-ready description of the encoder with its weights' hash as `sha256`; whatever
            changes the latents belongs here.
        latent_shape: (c, t, h, w) of one latent.

    Raises:
        ValueError: the folder holds a cache of something else; the message shows the difference.
    """

    def __init__(
        self,
        folder: str | Path,
        clips: ClipDataset,
        vae: dict[str, Any],
        latent_shape: tuple[int, int, int, int],
        config: CacheConfig,
    ):
        self.folder = Path(folder)
        self.clips = clips
        self.items = CacheItems(clips, config)
        self.shards = self.items.shards
        self.latent_shape = latent_shape
        self.identity = self._identity(vae)
        text = json.dumps(self.identity, sort_keys=True)
        c, *rest = latent_shape
        identity_hash = hashlib.sha256(text.encode()).hexdigest()
        self._files = LatentShards(self.folder, identity_hash, (2 * c, *rest))
        if (self.folder / MANIFEST).exists():
            self._compare(read_manifest(self.folder))

    def pending(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Shards of process `rank` that are missing or differ from their recorded checksum."""
        return [n for n in range(rank, self.shards, world_size) if not self._files.is_done(n)]

    def begin(self, pending: int) -> None:
        """Mark the cache incomplete, before any of `pending` shards (of all processes) is written.

        Raises:
            ValueError: the disk has not enough room for them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        items = min(pending * self.items.config.items_per_shard, len(self.items))
        need = items * 2 * torch.float16.itemsize * math.prod(self.latent_shape)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise ValueError(
                f"{self.folder}: {pending} shards need {need / 1e9:.1f} GB, but the disk has "
                f"{free / 1e9:.1f} GB free. Free space or choose another folder."
            )
        for leftover in self.folder.glob(".*.tmp.*"):  # of a process that was killed
            leftover.unlink()
        write_json(self.folder / MANIFEST, {**self.identity, "complete": False})

    def write(
        self,
        encode: Encode,
        shards: Sequence[int],
        *,
        batch_size: int = 8,
        workers: int = 0,
        progress: bool = False,
    ) -> Timing:
        """Encode and write `shards`; each appears whole, under its name, or not at all.

        A shard is written while the next one is encoded. Returns where the time went.

        Args:
            encode: uint8 clips to moments, [mean | log-variance] along the channels.
            batch_size: clips per call of `encode`; batches do not cross shards.
            workers: decoding processes; 0 decodes in this one.
            progress: show a bar.

        Raises:
            ValueError: moments of another shape, not finite or too large for float16; or more
                unreadable videos than the clips' `max_error_fraction`.
        """
        plan = [list(_chunks(self.items.in_shard(shard), batch_size)) for shard in shards]
        loader = DataLoader(
            self.items,
            batch_sampler=[batch for batches in plan for batch in batches],
            num_workers=workers,
            collate_fn=list,
            worker_init_fn=one_thread,
            generator=torch.Generator(),
        )
        stream = start(loader)
        timing, written = Timing("decode", "encode", "write"), None
        total = sum(len(self.items.in_shard(shard)) for shard in shards)
        bar = tqdm(total=total, unit="clip", disable=not progress, smoothing=0.05)
        with bar, ThreadPoolExecutor(1) as writer:
            for shard, batches in zip(shards, plan, strict=True):
                content = ShardContent()
                for batch in batches:
                    with timing.measure("decode"):
                        rows = next(stream)
                    with timing.measure("encode"):
                        self._encode(encode, rows, content)
                    bar.update(len(batch))
                with timing.measure("write"):
                    if written:
                        written.result()
                labels = [self.clips.sample(item.index).label for item in content.items]
                written = writer.submit(self._files.write, shard, content, labels)
            with timing.measure("write"):
                if written:
                    written.result()
        return timing

    def finish(self) -> dict[str, Any]:
        """Write the final manifest, when every shard is there; returns it.

        Raises:
            ValueError: a shard is missing, or too many videos failed.
        """
        records = [self._files.record(number) for number in range(self.shards)]
        if missing := [number for number, record in enumerate(records) if record is None]:
            raise ValueError(f"{self.folder}: shards {missing[:10]} are missing. Run again.")
        done = [record for record in records if record is not None]
        failures = [failure for record in done for failure in record["failures"]]
        for failure in failures:
            self.clips.quarantine.add(failure["video"], failure["reason"])
        manifest = {
            **self.identity,
            "split": Path(self.clips.config.folder).resolve().name,
            "shards": [
                {k: record[k] for k in ("file", "count", "bytes", "sha256")} for record in done
            ],
            "totals": {
                "videos": len(self.clips),
                "too_short": self.clips.left_out,
                "items": sum(record["count"] for record in done),
                "bytes": sum(record["bytes"] for record in done),
                "failures": len(failures),
            },
            "failures": failures,
            "statistics": merge_sums([record["sums"] for record in done]),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "frame_rate": self.clips.frame_rate,
            "complete": True,
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    @property
    def complete(self) -> bool:
        """Whether the manifest says that the cache is whole."""
        path = self.folder / MANIFEST
        return path.exists() and read_manifest(self.folder)["complete"]

    def _identity(self, vae: dict[str, Any]) -> dict[str, Any]:
        """Everything that decides the shards' contents."""
        clips = self.clips.config
        source = {
            "hash": self.clips.hash,
            "frames": clips.frames,
            "stride": clips.stride,
            "height": clips.height,
            "width": clips.width,
            "crop": "center",
            "short_clips": clips.short_clips,
            "filter": clips.filter,
            "strict_decoding": clips.strict_decoding,
            "decoder": "PyAV" if clips.decoder == "pyav" else clips.decoder,
        }
        identity = {
            "schema": SCHEMA,
            "vae": vae,
            "source": source,
            "cache": asdict(self.items.config),
            "dtype": "float16",
            "latent_shape": self.latent_shape,
            "class_names": self.clips.class_names,
        }
        return json.loads(json.dumps(identity))

    def _compare(self, old: dict[str, Any]) -> None:
        changes = differences({key: old.get(key) for key in self.identity}, self.identity)
        if changes:
            raise ValueError(
                f"{self.folder} holds another latent cache: {'; '.join(changes)}. "
                "Choose another folder, or delete this one."
            )

    def _encode(self, encode: Encode, rows: list[dict[str, Any]], content: ShardContent) -> None:
        for row in rows:
            if row["reason"]:
                video = self.clips.sample(row["item"].index).key
                self.clips.quarantine.add(video, row["reason"])
                content.failures.append(
                    {"key": row["item"].key, "video": video, "reason": row["reason"]}
                )
        good = [row for row in rows if not row["reason"]]
        if not good:
            return
        moments = encode(torch.stack([row["video"] for row in good])).detach().float()
        if tuple(moments.shape) != (shape := (len(good), *self._files.shape)):
            raise ValueError(
                f"the encoder gave {tuple(moments.shape)} for {len(good)} clips, "
                f"but the cache needs {shape}"
            )
        fits = (moments.abs() < LARGEST).flatten(1).all(dim=1).tolist()  # NaN compares false
        if not all(fits):
            raise ValueError(
                f"the latent of {good[fits.index(False)]['item'].key} is not finite or beyond "
                f"{LARGEST:.0f}, too large for float16. Check the VAE and its precision."
            )
        content.moments.append(moments.to("cpu", torch.float16))
        content.items += [row["item"] for row in good]


def _chunks(numbers: range, size: int) -> Iterator[list[int]]:
    for first in range(0, len(numbers), size):
        yield list(numbers[first : first + size])
