"""LPIPS on video frames, with backbone weights from a file."""

import warnings
from pathlib import Path
from typing import Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.published_weights import LPIPS_ALEX, LPIPS_VGG
from common.weights import WeightsFile, find_weights, read_state_dict

Backbone = Literal["vgg", "alex"]

WEIGHTS = {"vgg": LPIPS_VGG, "alex": LPIPS_ALEX}
"""torchvision's ImageNet weights of each backbone."""

SMALLEST = {"vgg": 16, "alex": 31}
"""Least height and width of a frame, pixels."""


def check_size(backbone: Backbone, height: int, width: int) -> None:
    """Refuse (`ValueError`) frames that are too small for the backbone."""
    if min(height, width) < SMALLEST[backbone]:
        raise ValueError(
            f"frames of {height} x {width}, but LPIPS with {backbone} needs at least "
            f"{SMALLEST[backbone]} x {SMALLEST[backbone]}"
        )


def load_lpips(
    backbone: Backbone, path: str | Path | None = None, *, download: bool = False
) -> "PerceptualLoss":
    """LPIPS, with the backbone's weights from where `find_weights` looks.

    Raises:
        ValueError: no weights there, or not a torchvision backbone.
    """
    file = find_weights(WEIGHTS[backbone], path, allow_unknown=True, download=download)
    return PerceptualLoss(backbone, file)


class PerceptualLoss(nn.Module):
    """LPIPS (Zhang et al. 2018, version 0.1) of each frame; frozen.

    Args:
        backbone: whose features are compared.
        weights: torchvision's state dict of the backbone.

    Attributes:
        name: `lpips_alex` or `lpips_vgg`; with other weights than torchvision's, `..._unverified`.
        sha256: of the weights file.

    Raises:
        ValueError: the file is no such state dict.
    """

    def __init__(self, backbone: Backbone, weights: WeightsFile):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision in a deprecated way
            from lpips import LPIPS

            self.lpips = LPIPS(net=backbone, pnet_rand=True, verbose=False)
        self.name = f"lpips_{backbone}" if weights.verified else f"lpips_{backbone}_unverified"
        self.sha256 = weights.sha256
        state = read_state_dict(weights.path)
        own = self.lpips.net.state_dict()  # slice1.0.weight is features.0.weight of torchvision
        wanted = {key: f"features.{key.partition('.')[2]}" for key in own}
        for key, name in wanted.items():
            shape = getattr(state.get(name), "shape", None)
            if shape != own[key].shape:
                found = f"is {tuple(shape)}" if shape is not None else "is missing"
                raise ValueError(
                    f"{weights.path}: not torchvision's {backbone}, {name} {found}, not "
                    f"{tuple(own[key].shape)}"
                )
        self.lpips.net.load_state_dict({key: state[name] for key, name in wanted.items()})
        self.requires_grad_(False).eval()

    def forward(
        self, x: Float[Tensor, "b 3 t h w"], y: Float[Tensor, "b 3 t h w"]
    ) -> Float[Tensor, "b t"]:
        """Distance of each frame of `x` from the same frame of `y`, both in [-1, 1]."""
        frames = [rearrange(video, "b c t h w -> (b t) c h w") for video in (x, y)]
        return rearrange(self.lpips(*frames), "(b t) 1 1 1 -> b t", b=x.shape[0])
