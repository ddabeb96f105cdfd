"""What a run starts from: new weights, or another model's."""

import logging
from dataclasses import replace

import torch

from common.seeding import fold
from latte.config import LatteConfig
from latte.model import Latte

log = logging.getLogger(__name__)


def initial_model(config: LatteConfig, seed: int, source: str | None = None) -> Latte:
    """A model in training mode: with new weights drawn from the seed, or with those of `source`.

    Args:
        source: Folder or hub id of a Latte of the same size.

    Raises:
        ValueError: `source` is of another size.
    """
    torch.manual_seed(fold(seed, "weights"))
    model = Latte(config)
    if source is None:
        return model
    given = Latte.from_pretrained(source)
    if replace(given.config, class_dropout=config.class_dropout) != config:
        raise ValueError(
            f"{source}: {given.config} is of another size than {config}. "
            "Start from a model of the same size, or change model and latents."
        )
    model.load_state_dict(given.state_dict())
    log.info("%s: all weights loaded", source)
    return model.train()
