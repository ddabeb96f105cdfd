"""Compilation of a model's layers in training."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._triton import has_triton

from engine import fsdp

RECOMPILE_LIMIT = 256
"""Graphs of one kind of layer: one for each width and size of its input, with gradients and
without. Past it torch runs layers eagerly. A VAE on four sizes of clips needs 70."""


def compiles(wanted: bool | None, accelerator: Accelerator) -> bool:
    """Whether to compile: as `wanted`; None means on CUDA with Triton, without FSDP."""
    if wanted is not None:
        return wanted
    return accelerator.device.type == "cuda" and has_triton() and not fsdp.is_active(accelerator)


def compile_layers(layers: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Compile each of `layers` when it first runs, anew for each size of its input.

    Args:
        backend: of torch.compile.
    """
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = RECOMPILE_LIMIT
    for layer in layers:
        layer.compile(dynamic=False, backend=backend)


def compiled_graphs() -> int:
    """Graphs that this process has compiled so far."""
    return counters["stats"]["unique_graphs"]
