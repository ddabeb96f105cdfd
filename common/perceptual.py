"""LPIPS on video frames, with backbone weights from a file: nothing is downloaded."""

import warnings
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Backbone = Literal["vgg", "alex"]

FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
"""torchvision's ImageNet weights, under the names that torch hub gives them."""

SMALLEST = {"vgg": 16, "alex": 31}
"""Least height and width of a frame, pixels."""


def check_size(backbone: Backbone, height: int, width: int) -> None:
    """Refuse (`ValueError`) frames that are too small for the backbone."""
    if min(height, width) < SMALLEST[backbone]:
        raise ValueError(
            f"frames of {height} x {width}, but LPIPS with {backbone} needs at least "
            f"{SMALLEST[backbone]} x {SMALLEST[backbone]}"
        )


def find_backbone(backbone: Backbone, path: str | None = None) -> Path:
    """The weights file: `path`, or the torch hub cache (`$TORCH_HOME/hub/checkpoints`).

    Raises:
        ValueError: there is none; says what to get and where to put it.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILES[backbone]
    file = Path(path) if path else cached
    if file.is_file():
        return file
    raise ValueError(
        f"{file}: no weights for LPIPS. Get torchvision's ImageNet weights {FILES[backbone]}, put "
        f"them at {cached}. In training, you can also name the file in perceptual_weights, or set "
        "perceptual to none."
    )


class PerceptualLoss(nn.Module):
    """LPIPS (Zhang et al. 2018, version 0.1) of each frame; frozen."""

    def __init__(self, backbone: Backbone, weights: Path):
        """`weights`: torchvision's state dict of the backbone.

        Raises:
            ValueError: the file is no such state dict.
        """
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision in a deprecated way
            from lpips import LPIPS

            self.lpips = LPIPS(net=backbone, pnet_rand=True, verbose=False)
        self._load_backbone(weights)
        self.requires_grad_(False).eval()

    def forward(
        self, x: Float[Tensor, "b 3 t h w"], y: Float[Tensor, "b 3 t h w"]
    ) -> Float[Tensor, "b t"]:
        """Distance of each frame of `x` from the same frame of `y`, both in [-1, 1]."""
        frames = [rearrange(video, "b c t h w -> (b t) c h w") for video in (x, y)]
        return rearrange(self.lpips(*frames), "(b t) 1 1 1 -> b t", b=x.shape[0])

    def _load_backbone(self, weights: Path) -> None:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        own = self.lpips.net.state_dict()  # slice1.0.weight is features.0.weight of torchvision
        wanted = {key: f"features.{key.partition('.')[2]}" for key in own}
        missing = [name for name in wanted.values() if name not in state]
        if missing:
            raise ValueError(f"{weights}: no torchvision backbone, {missing[0]} is missing")
        self.lpips.net.load_state_dict({key: state[name] for key, name in wanted.items()})
