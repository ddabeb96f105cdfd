"""The accelerator of a training run: its precision, trackers and what it refuses."""

import importlib.util

from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration

from common.accelerator import make_accelerator
from engine import fsdp
from engine.config import TrainConfig

TRAINABLE = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)


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
