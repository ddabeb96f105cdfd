"""Accelerate's view of the processes that this one belongs to."""

import os
from typing import Any

import torch
from accelerate import Accelerator


def make_accelerator(**options: Any) -> Accelerator:
    """An `Accelerator` that also finds its peers on a machine without an accelerator.

    By itself Accelerate overlooks `torchrun`'s processes there, and each would do all the work.

    Raises:
        ValueError: the launcher started several processes and they did not find each other.
    """
    accelerator = Accelerator(**{"cpu": not torch.accelerator.is_available(), **options})
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but only {accelerator.num_processes} met. "
            "Start them with torchrun or accelerate launch, and without them for one process."
        )
    return accelerator
