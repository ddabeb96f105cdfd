"""Frames to the size a network wants, as the public implementations do it; range checks."""

import math
from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Resize = Literal["stretch", "crop"]
RANGE_TOLERANCE = 1e-3  # how far outside [-1, 1] a video may lie by rounding


def resize_frames(
    video: Float[Tensor, "b c t h w"], size: int, mode: Resize
) -> Float[Tensor, "b c t size size"]:
    """Bilinear resize of every frame, half-pixel centers, no antialiasing.

    Frames that already are `size x size` come back untouched.

    Args:
        video: any range.
        size: pixels, height and width of the result.
        mode: `stretch` changes the aspect ratio (TensorFlow's FVD, StyleGAN-V); `crop` brings the
            short side to `size` and cuts out the center (the VideoGPT port).
    """
    b, _, _, h, w = video.shape
    if (h, w) == (size, size):
        return video
    scale = size / min(h, w)
    target = (size, size)
    if mode == "crop":
        target = (size, math.ceil(w * scale)) if h < w else (math.ceil(h * scale), size)
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, target, mode="bilinear", align_corners=False)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    frames = frames[..., top : top + size, left : left + size]
    return rearrange(frames, "(b t) c h w -> b c t h w", b=b)


def check_video(video: Float[Tensor, "b 3 t h w"]) -> None:
    """Refuse what is not a batch of float RGB videos in [-1, 1].

    Raises:
        ValueError: another layout, uint8, values outside the range or not finite. A video in
            [0, 255] is caught; one in [0, 1] cannot be told from a bright one.
    """
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"video of shape {tuple(video.shape)} must be b 3 t h w")
    check_range(video)


def check_range(video: Tensor) -> None:
    """Refuse (`ValueError`) anything but floats in [-1, 1]; NaN and infinity included."""
    if not video.is_floating_point():
        raise ValueError(f"video is {video.dtype}, but floats in [-1, 1] are needed")
    low, high = (value.item() for value in video.aminmax())
    if not (low >= -1 - RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise ValueError(f"video spans [{low:.4g}, {high:.4g}], but must lie in [-1, 1]")
