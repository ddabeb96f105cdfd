"""Features of every clip of a source, kept with the clips' ids, so that no network runs twice."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from engine.files import atomic_path
from eval.clips import ClipSource
from eval.features.extractors import Extractor

SCHEMA = 1


@dataclass(frozen=True)
class FeatureSet:
    """One feature vector per clip."""

    values: Float32[np.ndarray, "n d"]
    """In the order of `ids`."""
    ids: list[str]
    """Which video each clip came from."""


def extract_features(
    source: ClipSource,
    extractor: Extractor,
    *,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    workers: int = 0,
    cache: str | Path | None = None,
    progress: bool = True,
) -> FeatureSet:
    """Run the network over every clip, or read what an earlier, equal run has kept.

    Args:
        source: the clips.
        extractor: moved to `device`.
        batch_size: clips per forward pass; no effect on the features beyond rounding.
        device: where the network runs.
        workers: processes that decode ahead.
        cache: folder for features under a name that hashes the weights, the preset, the protocol
            and every clip's bytes; anything else than an exact repetition computes anew.
        progress: show a bar.

    Raises:
        ValueError: features that are not finite (naming the clip), or a damaged cache file.
    """
    path = Path(cache) / f"{feature_key(source, extractor)}.safetensors" if cache else None
    if path and path.exists():
        return _read(path, source.ids)
    extractor.to(device)
    parts: list[np.ndarray] = []
    with tqdm(total=len(source), desc=extractor.name, unit="clip", disable=not progress) as bar:
        for ids, clips in source.batches(batch_size, workers):
            values = extractor.features(clips.to(device)).float().cpu().numpy()
            if not np.isfinite(values).all():
                bad = ids[int(np.argmin(np.isfinite(values).all(axis=1)))]
                raise ValueError(f"{source.folder}: features of {bad} are not finite")
            parts.append(values)
            bar.update(len(ids))
    features = FeatureSet(np.concatenate(parts), source.ids)
    if path:
        with atomic_path(path) as temporary:
            ids_text = json.dumps(features.ids)
            save_file({"features": features.values}, temporary, metadata={"ids": ids_text})
    return features


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
