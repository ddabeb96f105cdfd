"""Accelerate's view of the processes that this one belongs to."""

import importlib.util
import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration

from engine import fsdp
from engine.config import TrainConfig

TRAINABLE = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)


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


def training_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of the processes, with the precision and the tracker of a training run.

    Raises:
        ValueError: wandb is wanted and not installed, or the launcher asks for DeepSpeed or for
            what is not supported with FSDP.
    """
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"wandb={config.wandb}: the package is missing. pip install wandb, or set it to null."
        )
    project = ProjectConfiguration(project_dir=config.folder, logging_dir=config.folder)
    accelerator = make_accelerator(
        mixed_precision=config.precision, log_with="tensorboard", project_config=project
    )
    if accelerator.distributed_type not in TRAINABLE:
        raise ValueError(
            f"distributed_type={accelerator.distributed_type.value} is not supported. "
            "Launch with torchrun, or with accelerate without DeepSpeed."
        )
    if fsdp.is_active(accelerator):
        fsdp.check(accelerator)
    return accelerator
