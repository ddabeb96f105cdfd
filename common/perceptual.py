"""LPIPS on video frames, with backbone weights from a file."""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common.published_weights import LPIPS_ALEX, LPIPS_VGG
from common.weights import WeightsFile, find_weights, read_state_dict

Backbone = Literal["vgg", "alex"]

WEIGHTS = {"vgg": LPIPS_VGG, "alex": LPIPS_ALEX}
"""torchvision's ImageNet weights of each backbone."""

SMALLEST = {"vgg": 16, "alex": 31}
"""Least height and width of a frame, pixels."""

CHUNK_PIXELS = 5 * 2**18
"""Pixels that go through the backbone at once, at least one frame: 5 frames of 512 x 512."""


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

    Frames are compared in chunks. Where `x` takes gradients, those of a chunk are computed with its
    distances, so that no feature map is kept for the backward pass. They can be taken once, and
    `y` gets none.

    Args:
        backbone: whose features are compared.
        weights: torchvision's state dict of the backbone; None: random weights, for measurements of
            time and memory.

    Attributes:
        name: `lpips_alex` or `lpips_vgg`; with other weights than torchvision's, `..._unverified`.
        sha256: of the weights file.

    Raises:
        ValueError: the file is no such state dict.
    """

    def __init__(self, backbone: Backbone, weights: WeightsFile | None):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision in a deprecated way
            from lpips import LPIPS

            self.lpips = LPIPS(net=backbone, pnet_rand=True, verbose=False)
        self.requires_grad_(False).eval()
        if weights is None:
            self.name, self.sha256 = f"lpips_{backbone}_random", ""
            return
        self.name = f"lpips_{backbone}" if weights.verified else f"lpips_{backbone}_unverified"
        self.sha256 = weights.sha256
        state = read_state_dict(weights.path)
        ours = self.lpips.net.state_dict()  # slice1.0.weight is features.0.weight of torchvision
        wanted = {key: f"features.{key.partition('.')[2]}" for key in ours}
        for key, name in wanted.items():
            shape = getattr(state.get(name), "shape", None)
            if shape != ours[key].shape:
                found = f"is {tuple(shape)}" if shape is not None else "is missing"
                raise ValueError(
                    f"{weights.path}: not torchvision's {backbone}, {name} {found}, not "
                    f"{tuple(ours[key].shape)}"
                )
        self.lpips.net.load_state_dict({key: state[name] for key, name in wanted.items()})

    def keep_bf16_weights(self) -> None:
        """Of the backbone: those that autocast to bfloat16 would make anew at every call."""
        self.lpips.net.bfloat16()

    def forward(
        self, x: Float[Tensor, "b 3 t h w"], y: Float[Tensor, "b 3 t h w"]
    ) -> Float[Tensor, "b t"]:
        """Distance of each frame of `x` from the same frame of `y`, both in [-1, 1]."""
        frames = [rearrange(video, "b c t h w -> (b t) c h w") for video in (x, y)]
        distances: Tensor = _ChunkedLPIPS.apply(self.lpips, *frames)  # type: ignore[assignment]
        return rearrange(distances, "(b t) -> b t", b=x.shape[0])


class _ChunkedLPIPS(torch.autograd.Function):
    """A frame's distance depends on that frame alone, and so does its gradient."""

    @staticmethod
    def forward(ctx: Any, lpips: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        size = max(1, CHUNK_PIXELS // (x.shape[2] * x.shape[3]))
        distances, gradients = [], []
        for part, target in zip(x.split(size), y.split(size), strict=True):
            part = part.detach().requires_grad_(ctx.needs_input_grad[1])
            with torch.set_grad_enabled(part.requires_grad):
                distance = lpips(part, target).flatten()
                if part.requires_grad:
                    gradients += torch.autograd.grad(distance.sum(), part)
            distances.append(distance.detach())
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(distances)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        return None, grad.view(-1, 1, 1, 1) * ctx.saved_tensors[0], None
