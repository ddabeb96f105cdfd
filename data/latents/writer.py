"""Writing cached latents: whole shards per process, the same bytes however often it was stopped.

A cache is a folder (`common.output_folder`) of `data.latents.shards` and, once all are there,
manifest.json, which says what was encoded and with what.
"""

import importlib.metadata
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor
from tqdm import tqdm

from common.files import write_json
from common.measure import Timing
from common.output_folder import check_identity, write_identity
from data.clips.dataset import ClipDataset
from data.clips.options import ClipOptions
from data.latents.dataset import MANIFEST, SCHEMA
from data.latents.shards import (
    CacheConfig,
    CacheItems,
    Failures,
    Item,
    ShardRecord,
    is_done,
    merge_sums,
    shard_path,
    write_shard,
)
from engine.prefetch import HostCopy, load_batches, prefetch

PRODUCTS = (MANIFEST, "latents-*")
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
        clips: source; its frames, stride, size, `short_clips`, filter and limit of unreadable clips
            apply, while starts, flips and the central crop are decided here.
        vae: JSON-ready description of the VAE with its encoder's hash as `encoder_sha256`; whatever
            changes the latents belongs here. Its `training` is recorded and may change, as a
            decoder's does.
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
        self.vae = vae
        self.identity = self._identity()
        check_identity(self.folder, self.identity, products=PRODUCTS)

    def pending(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Shards of process `rank` that are missing or differ from their recorded checksum."""
        return [
            number
            for number in range(rank, self.shards, world_size)
            if not is_done(shard_path(self.folder, number))
        ]

    def begin(self, pending: int) -> None:
        """Record what the cache is made from, before any of `pending` shards (of all processes) is
        written; until `finish` it is incomplete.

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
        write_identity(self.folder, self.identity, products=PRODUCTS)
        (self.folder / MANIFEST).unlink(missing_ok=True)

    def write(
        self,
        encode: Encode,
        shards: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
        workers: int = 0,
        progress: bool = False,
    ) -> Timing:
        """Encode and write `shards`; each appears whole, under its name, or not at all.

        While a batch is encoded, the next one is read and goes to the device, and the moments of
        the one before come back; a full shard is written by a thread. Returns where the time went.

        Args:
            encode: uint8 clips on the device to moments, [mean | log-variance] along the channels.
            device: where clips are encoded.
            batch_size: clips per call of `encode`; batches do not cross shards.
            workers: decoding processes; 0 decodes in this one.
            progress: show a bar.

        Raises:
            ValueError: moments of another shape, not finite or too large for float16; or more
                unreadable videos than the clips' `max_error_fraction`.
            OSError: a shard could not be written.
        """
        numbers = [self.items.in_shard(shard) for shard in shards]
        batches = [
            [of_shard[first : first + batch_size] for first in range(0, len(of_shard), batch_size)]
            for of_shard in numbers
        ]
        loaded = load_batches(
            self.items,
            workers=workers,
            batch_sampler=[batch for of_shard in batches for batch in of_shard],
            collate_fn=_collate,
        )
        timing = Timing("decode", "encode", "write")
        written: Future[None] | None = None  # the last shard, when the thread has written it
        bar = tqdm(total=sum(map(len, numbers)), unit="clip", disable=not progress, smoothing=0.05)
        stream = prefetch(loaded, torch.device(device))
        with bar, closing(stream), ThreadPoolExecutor(1) as writer:
            # Batches, each when the device has the next one to do
            encoded = chain(self._encoded(encode, stream, timing), [None])
            results = (batch for batch, _ in pairwise(encoded) if batch)
            for shard, of_shard in zip(shards, batches, strict=True):
                moments: list[Float16[Tensor, "b c2 t h w"]] = []
                items: list[Item] = []
                failures: Failures = []
                for batch in of_shard:
                    result = next(results)
                    with timing.measure("encode"):
                        moments.append(result.moments())
                    items += result.items
                    failures += result.failures
                    bar.update(len(batch))
                    if written is not None and written.done():
                        written.result()  # a full disk ends the work now
                with timing.measure("write"):
                    if written is not None:
                        written.result()
                path = shard_path(self.folder, shard)
                written = writer.submit(write_shard, path, moments, items, failures)
            with timing.measure("write"):
                if written is not None:
                    written.result()
        return timing

    def finish(self) -> dict[str, Any]:
        """Write the final manifest, when every shard is there; returns it.

        Raises:
            ValueError: a shard is missing, or too many videos failed.
        """
        files = [shard_path(self.folder, number) for number in range(self.shards)]
        records = [ShardRecord.load(file) for file in files]
        if missing := [number for number, record in enumerate(records) if record is None]:
            raise ValueError(f"{self.folder}: shards {missing[:10]} are missing. Run again.")
        done = [record for record in records if record is not None]
        failures = [failure for record in done for failure in record.failures]
        for failure in failures:
            self.clips.unreadable.add(failure["video"], failure["reason"])
        manifest = {
            **self.identity,
            "vae": self.vae,
            "split": Path(self.clips.config.folder).resolve().name,
            "shards": [
                {k: getattr(record, k) for k in ("file", "count", "bytes", "sha256")}
                for record in done
            ],
            "totals": {
                "videos": len(self.clips),
                "too_short": self.clips.left_out,
                "items": sum(record.count for record in done),
                "bytes": sum(record.bytes for record in done),
                "failures": len(failures),
            },
            "failures": failures,
            "statistics": merge_sums([record.sums for record in done]),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "frame_rate": self.clips.frame_rate,
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    @property
    def complete(self) -> bool:
        """Whether the manifest is there, which is written last."""
        return (self.folder / MANIFEST).exists()

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the shards' contents."""
        clips, cache = self.clips.config, self.items.config
        options = {field.name: getattr(clips, field.name) for field in fields(ClipOptions)}
        del options["max_error_fraction"]
        identity = {
            "schema": SCHEMA,
            "vae": {name: value for name, value in self.vae.items() if name != "training"},
            "source": {"hash": self.clips.hash, **options, "crop": "center"},
            "cache": {field.name: getattr(cache, field.name) for field in fields(CacheConfig)},
            "dtype": "float16",
            "latent_shape": self.latent_shape,
            "class_names": self.clips.class_names,
        }
        return json.loads(json.dumps(identity))

    def _encoded(
        self, encode: Encode, stream: Iterator[dict[str, Any]], timing: Timing
    ) -> Iterator["EncodedBatch"]:
        """Every batch, of which the device may have yet to do the most."""
        c, *rest = self.latent_shape
        while True:
            with timing.measure("decode"):
                rows = next(stream, None)
            if rows is None:
                return
            for failure in rows["failures"]:
                self.clips.unreadable.add(failure["video"], failure["reason"])
            shape = (len(rows["items"]), 2 * c, *rest)
            with timing.measure("encode"):
                video = rows["video"]
                moments = torch.empty(shape) if video is None else encode(video).detach().float()
                if tuple(moments.shape) != shape:
                    raise ValueError(
                        f"the encoder gave {tuple(moments.shape)} for {len(rows['items'])} clips, "
                        f"but the cache needs {shape}"
                    )
                fits = (moments.abs() < LARGEST).flatten(1).all(dim=1)  # NaN compares false
                copies = HostCopy(moments.half()), HostCopy(fits)
            yield EncodedBatch(rows["items"], rows["failures"], *copies)


@dataclass(frozen=True)
class EncodedBatch:
    """Moments on their way from the device."""

    items: list[Item]
    """What they are of."""
    failures: Failures
    """Clips of the batch that could not be read."""
    copy: HostCopy
    """float16."""
    fits: HostCopy
    """Which of them are finite in float16."""

    def moments(self) -> Float16[Tensor, "b c2 t h w"]:
        """The moments of all items.

        Raises:
            ValueError: an item's are not finite or too large for float16.
        """
        if not all(fits := self.fits.read().tolist()):
            raise ValueError(
                f"the latent of {self.items[fits.index(False)].key} is not finite or beyond "
                f"{LARGEST:.0f}, too large for float16. Check the VAE and its precision."
            )
        return self.copy.read()


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The clips that could be read in one tensor, what they are, and the failures."""
    good = [row for row in rows if "video" in row]
    return {
        "video": torch.stack([row["video"] for row in good]) if good else None,
        "items": [row["item"] for row in good],
        "failures": [row["failure"] for row in rows if "failure" in row],
    }
