"""Features of every clip of a source, kept with the clips' ids, so that no network runs twice.

Several processes share the work by whole batches, the same ones that a single process would form,
so that every feature is computed in the same company and comes out equal to the last bit.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

from common.files import atomic_path
from common.processes import num_processes, process_index, share_batches
from eval.clips.source import ClipSource
from eval.features.extractors import Extractor

SCHEMA = 1


@dataclass(frozen=True)
class FeatureSet:
    """One feature vector per clip."""

    values: Float32[np.ndarray, "n d"]
    """In the order of `ids`."""
    ids: list[str]
    """Which video each clip came from."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How features are computed; none of it changes them beyond rounding."""

    batch_size: int = 8
    """Clips per forward pass."""
    device: str | torch.device = "cpu"
    """Where the network runs, in this process."""
    workers: int = 0
    """Processes that decode ahead."""
    cache: str | Path | None = None
    """Folder for features under a name that hashes the weights, the preset, the protocol and every
    clip's bytes; anything else than an exact repetition computes anew."""


def extract_features(source: ClipSource, extractor: Extractor, options: Extraction) -> FeatureSet:
    """Run the network over every clip, or read what an earlier, equal run has kept.

    Args:
        source: the clips.
        extractor: moved to the options' device.
        options: how.

    Raises:
        ValueError: features that are not finite (naming the clip), or a damaged cache file.
    """
    cache, device = options.cache, options.device
    main = process_index() == 0
    path = Path(cache) / f"{feature_key(source, extractor)}.safetensors" if cache else None
    there = path is not None and path.exists()
    if num_processes() > 1:  # all go the way of the main process
        (there,) = broadcast_object_list([there])
    if there:
        assert path is not None
        return _read(path, source.ids)
    extractor.to(device)
    place = process_index(), num_processes()
    batches = source.batches(options.batch_size, options.workers, *place)
    room: list[np.ndarray] = []  # for all: small arrays kept between large ones split the heap

    def features(numbers: range) -> Float32[np.ndarray, "b d"]:
        _, ids, clips = next(batches)
        found = finite_features(extractor, clips.to(device), ids, source.folder)
        if not room:
            room.append(np.empty((len(source), found.shape[1]), np.float32))
        rows = room[0][numbers.start : numbers.stop]
        rows[:] = found
        bar.update(len(ids) * num_processes())
        return rows

    with tqdm(total=len(source), desc=extractor.name, unit="clip", disable=not main) as bar:
        values = np.concatenate(share_batches(len(source), options.batch_size, features))
    found = FeatureSet(values, source.ids)
    if path and main:
        with atomic_path(path) as temporary:
            ids_text = json.dumps(found.ids)
            save_file({"features": found.values}, temporary, metadata={"ids": ids_text})
    return found


def finite_features(
    extractor: Extractor, clips: Float[Tensor, "b c t h w"], ids: list[str], where: str | Path
) -> Float32[np.ndarray, "b d"]:
    """Features of a batch on the CPU; a `ValueError` names the first clip without finite ones."""
    values = extractor.features(clips).float().cpu().numpy()
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise ValueError(f"{where}: features of {ids[int(np.argmin(finite))]} are not finite")
    return values


def copies_note(values: Float32[np.ndarray, "n d"], which: str) -> list[str]:
    """A note if several clips have the very same features, as copies of one clip do."""
    copies = len(values) - len(np.unique(values, axis=0))
    if not copies:
        return []
    return [
        f"{copies} of {len(values)} {which} clips have the features of another: copies? Processes "
        "that draw the same noise or the same videos leave them."
    ]


def feature_key(source: ClipSource, extractor: Extractor) -> str:
    """Hash of everything that features depend on; reads every video's bytes once."""
    parts = {"schema": SCHEMA, "extractor": extractor.describe(), "clips": source.content()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path, ids: list[str]) -> FeatureSet:
    try:
        with safe_open(path, framework="numpy") as file:
            values = file.get_tensor("features")
            stored = json.loads((file.metadata() or {}).get("ids", "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged ({error}). Delete it and run again.") from None
    if stored != ids or len(values) != len(ids):
        raise ValueError(f"{path}: holds other clips than its name says. Delete it and run again.")
    return FeatureSet(values, ids)
