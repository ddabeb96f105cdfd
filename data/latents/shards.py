"""The shards of a latent cache as files, each with a record that tells whether it is done.

latents-000000.safetensors   moments [n, 2c, t, h, w] float16 (mean, log-variance), label,
                             clip_start, flip; keys in the metadata
latents-000000.json          its checksum, failures and sums: what a rerun checks
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from common.files import atomic_path, read_json, sha256_file, write_json
from data.latents.items import Item
from data.latents.statistics import shard_sums


@dataclass
class ShardContent:
    """What has been encoded of one shard."""

    moments: list[Tensor] = field(default_factory=list)
    """float16, of as many items as were encoded at once each."""
    items: list[Item] = field(default_factory=list)
    """What the moments are of."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """Key, video and reason of each clip left out."""


class LatentShards:
    """The shards in a folder.

    Args:
        identity: hash of all that decides their contents; shards with another one count as missing.
        shape: (2c, t, h, w) of one item's moments.
    """

    def __init__(self, folder: Path, identity: str, shape: tuple[int, ...]):
        self.folder = folder
        self.identity = identity
        self.shape = shape

    def write(self, number: int, content: ShardContent, labels: Sequence[int | None]) -> None:
        """Write shard `number` and its record; each file appears whole or not at all."""
        empty = torch.empty(0, *self.shape, dtype=torch.float16)
        moments = torch.cat([empty, *content.moments])
        starts = [item.start for item in content.items]
        flips = [item.flip for item in content.items]
        data = safetensors.torch.save(
            {
                "moments": moments,
                "label": torch.tensor([-1 if x is None else x for x in labels], dtype=torch.int64),
                "clip_start": torch.tensor(starts, dtype=torch.int64),
                "flip": torch.tensor(flips, dtype=torch.bool),
            },
            metadata={"keys": json.dumps([item.key for item in content.items])},
        )
        path = self._path(number)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        record = {
            "file": path.name,
            "count": len(content.items),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "failures": content.failures,
            "sums": shard_sums(moments.numpy()),
            "identity": self.identity,
        }
        write_json(path.with_suffix(".json"), record)

    def is_done(self, number: int) -> bool:
        """Whether shard `number` is there with its recorded checksum."""
        record = self.record(number)
        return record is not None and sha256_file(self._path(number)) == record["sha256"]

    def record(self, number: int) -> dict[str, Any] | None:
        """What is noted about a shard; None if this or the shard is absent, short or of old."""
        path = self._path(number)
        record = path.with_suffix(".json")
        if not (path.exists() and record.exists()):
            return None
        content = read_json(record)
        fits = (content["identity"], content["bytes"]) == (self.identity, path.stat().st_size)
        return content if fits else None

    def _path(self, number: int) -> Path:
        return self.folder / f"latents-{number:06d}.safetensors"
