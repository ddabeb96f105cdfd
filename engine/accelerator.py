"""The accelerator of a training run: its precision, trackers and what it refuses."""

import importlib.util
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration

from common.accelerator import make_accelerator
from engine import fsdp
from engine.config import TrainConfig

TRAINABLE = [DistributedType[kind] for kind in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")]

_groups: list[Any] = []
"""Groups of processes that models were trained on, kept until this process ends.

The last to let go of a gloo group joins its thread, and where that is DDP's reducer it holds the
GIL, for which the thread may be waiting: a run that was complete would never end (torch 2.12).
"""


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
    if accelerator.num_processes > 1:
        _groups.append(torch.distributed.group.WORLD)
    if fsdp.is_active(accelerator):
        fsdp.check(accelerator)
    return accelerator
