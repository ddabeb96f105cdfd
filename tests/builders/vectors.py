"""Reference vectors of public implementations: their cases, and weights derived from key names.

No weights are stored. Each tensor is a pure function of its state-dict key and shape, so any
implementation that knows the reference's key names can rebuild the model the outputs came from.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).parents[1] / "fixtures"


@dataclass(frozen=True)
class Case:
    """One reference case: `info` is its JSON (config, keys, inputs), `outputs` the tensors."""

    info: dict[str, Any]
    outputs: dict[str, Tensor]

    def weights(self) -> dict[str, Tensor]:
        """The reference's state dict: derived from `keys`; `fixed_keys` as the file gives them."""
        fixed = self.info.get("fixed_keys", {})
        derived = {key: shape for key, shape in self.info["keys"].items() if key not in fixed}
        given = {
            key: torch.tensor(entry["values"]).reshape(entry["shape"])
            for key, entry in fixed.items()
        }
        return derive_weights(derived, self.info.get("gain", 0.7)) | given


def load_case(name: str) -> Case:
    """Read `fixtures/NAME.json` and `fixtures/NAME.safetensors`."""
    info = json.loads((FIXTURES / f"{name}.json").read_text())
    return Case(info=info, outputs=load_file(FIXTURES / f"{name}.safetensors"))


def derive_weights(keys: Mapping[str, Sequence[int]], gain: float = 0.7) -> dict[str, Tensor]:
    """A float32 state dict from `{key: shape}`, each tensor seeded by the CRC-32 of its key."""
    return {key: _derive(key, tuple(shape), gain) for key, shape in keys.items()}


def _derive(key: str, shape: tuple[int, ...], gain: float) -> Tensor:
    a = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    match key.rsplit(".", 1)[-1]:
        case "gamma":
            value = 1 + 0.1 * a
        case "weight" if len(shape) == 1:
            value = 1 + 0.1 * a
        case "running_var":
            value = 0.5 + np.abs(a)
        case "bias" | "running_mean":
            value = 0.05 * a
        case "num_batches_tracked":
            value = np.zeros(shape)
        case _:
            value = a * gain / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def uniform(seed: int, shape: Sequence[int], scale: float = 1.0) -> Tensor:
    """`scale * uniform(-1, 1)` of NumPy's `RandomState(seed)`, float32 (VAE and I3D inputs)."""
    a = scale * np.random.RandomState(seed).uniform(-1, 1, tuple(shape))
    return torch.from_numpy(a.astype(np.float32))


def normal(seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal of NumPy's `RandomState(seed)`, float32 (Latte and diffusion inputs)."""
    a = np.random.RandomState(seed).standard_normal(tuple(shape))
    return torch.from_numpy(a.astype(np.float32))
