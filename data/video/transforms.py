"""From stored frames to the pixels of a clip: resize to cover, crop, flip."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

Filter = Literal["bilinear", "bicubic"]


def fit(
    frames: UInt8[Tensor, "t h w c"],
    height: int,
    width: int,
    *,
    crop: tuple[float, float] = (0.5, 0.5),
    flip: bool = False,
    filter: Filter = "bicubic",
) -> UInt8[Tensor, "c t height width"]:
    """Resize to the smallest size that covers `height x width`, crop to it, flip.

    The aspect ratio is kept to the rounding of one pixel; smaller sources are enlarged. Resizing
    is antialiased and rounds to uint8, so equal pixels stay equal pixels. Frames that already have
    the wanted size keep their exact values.

    Args:
        frames: uint8 RGB.
        height, width: wanted size in pixels.
        crop: position of the crop in the resized frame, from the top left (0, 0) to the bottom
            right (1, 1).
        flip: mirror left and right.
        filter: kernel of the resize.

    Returns:
        uint8; `common.pixels.to_float` makes model input of it.
    """
    video = rearrange(torch.as_tensor(frames), "t h w c -> t c h w")
    h, w = covering_size(video.shape[-2], video.shape[-1], height, width)
    if (h, w) != tuple(video.shape[-2:]):
        video = F.interpolate(video, [h, w], mode=filter, antialias=True)
    top, left = (round(at * slack) for at, slack in zip(crop, (h - height, w - width), strict=True))
    video = video[:, :, top : top + height, left : left + width]
    if flip:
        video = video.flip(-1)
    return rearrange(video, "t c h w -> c t h w").contiguous()


def covering_size(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """The size of an `h x w` frame scaled so that it just covers `height x width`."""
    if h * width < w * height:  # wider than wanted: the height decides
        return height, max(width, round(w * height / h))
    return max(height, round(h * width / w)), width
