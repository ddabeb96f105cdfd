"""A Latte small enough for tests, and inputs for it."""

import torch

from latte import Latte, LatteConfig
from tests.builders.vectors import normal

TINY = LatteConfig(
    in_channels=3,
    num_frames=3,
    height=4,
    width=6,
    hidden_size=16,
    depth=4,
    num_heads=2,
    num_classes=5,
)


def awake(config: LatteConfig, seed: int = 0) -> Latte:
    """A model whose zero-initialized layers have been moved, so that every path counts."""
    torch.manual_seed(seed)
    model = Latte(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def inputs(config: LatteConfig, rows: int = 2, images: int = 0) -> tuple[torch.Tensor, ...]:
    frames = config.num_frames + images
    x = normal(1, (rows, config.in_channels, frames, config.height, config.width))
    return x, torch.arange(rows) * 300 + 7, torch.arange(rows)
