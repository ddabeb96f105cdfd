"""Accelerate's view of the processes that this one belongs to."""

import os
from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others before it gives up: one of them may be decoding a slow
video, saving a large model or compiling."""

Precision = Literal["no", "bf16", "fp16"]
"""Of autocast; "no" is float32."""


def inference_precision(wanted: Precision | Literal["auto"]) -> Precision:
    """What `auto` stands for here: bf16 on a CUDA device, float32 elsewhere."""
    if wanted != "auto":
        return wanted
    return "bf16" if torch.cuda.is_available() else "no"


def make_accelerator(**options: Any) -> Accelerator:
    """An `Accelerator` that also finds its peers on a machine without an accelerator.

    By itself Accelerate overlooks `torchrun`'s processes there, and each would do all the work.

    Raises:
        ValueError: the launcher started several processes and they did not find each other.
    """
    torch.backends.cudnn.benchmark = True  # measure convolutions once per size, take the fastest
    handlers = [
        InitProcessGroupKwargs(timeout=PATIENCE),
        # buffers are constant tables, the same everywhere
        DistributedDataParallelKwargs(broadcast_buffers=False),
    ]
    options = {"cpu": not torch.accelerator.is_available(), "kwargs_handlers": handlers, **options}
    accelerator = Accelerator(**options)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"WORLD_SIZE={launched}, but only {accelerator.num_processes} processes joined. Start "
            "them with torchrun or accelerate launch; for a single process unset WORLD_SIZE."
        )
    return accelerator
