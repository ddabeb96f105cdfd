"""Frames: from what a decoder gives to RGB, sizes that are packed, and the pixels of a clip."""

from collections.abc import Iterable
from fractions import Fraction
from typing import Literal, cast

import numpy as np
import torch
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from data.video.container import pixel_aspect

Filter = Literal["bilinear", "bicubic"]
EXACT = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.BITEXACT
)
"""Colors by the formula, equal on every CPU; FFmpeg's default is faster, but a level darker."""


def to_rgb(frame: VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """The frame in RGB, turned and mirrored as its display matrix says."""
    image = frame.to_ndarray(format="rgb24", interpolation=EXACT, threads=1)
    a, b, c, d = orientation(frame)
    if not a:
        image = image.transpose(1, 0, 2)
    if a < 0 or c < 0:
        image = image[:, ::-1]
    if d < 0 or b < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def orientation(frame: VideoFrame) -> tuple[int, int, int, int]:
    """The signs a, b, c, d of the display matrix: x is shown at ax + cy, y at bx + dy."""
    for data in cast(Iterable[SideData], frame.side_data):
        if data.type == Type.DISPLAYMATRIX:
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
            if abs(b) + abs(c) > abs(a) + abs(d):
                return 0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0
            return -1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1
    return 1, 0, 0, 1


def shown_aspect(stream: VideoStream, frame: VideoFrame) -> Fraction:
    """Width of a pixel by its height, the right way up."""
    aspect = pixel_aspect(stream)
    return aspect if aspect == 1 or orientation(frame)[0] else 1 / aspect


def resize(
    image: UInt8[np.ndarray, "h w 3"], short_side: int, pixel_aspect: Fraction | int = 1
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Scale an image down to `short_side`, antialiased; never up. Both sides come out even.

    The aspect is kept to the rounding of the longer side to an even number. An image that is not
    scaled loses its last row or column if it is odd.

    Args:
        pixel_aspect: width of a stored pixel by its height; other than square ones become so by a
            change of the width.

    Raises:
        ValueError: a side has one pixel.
    """
    height, width = image.shape[:2]
    square = round(width * pixel_aspect)  # the width, in square pixels
    if min(height, square) < 2:
        raise ValueError(f"frames of {height}x{width} pixels; each side needs at least 2")
    scale = short_side / min(height, square)
    if scale >= 1 and square == width:
        return image[: height - height % 2, : width - width % 2]
    size = [2 * max(1, round(side * min(scale, 1) / 2)) for side in (height, square)]
    pixels = rearrange(torch.from_numpy(image), "h w c -> 1 c h w")
    scaled = F.interpolate(pixels, size, mode="bicubic", antialias=True)
    return rearrange(scaled, "1 c h w -> h w c").numpy()


def fit(
    frames: UInt8[Tensor, "t h w c"],
    height: int,
    width: int,
    *,
    crop: tuple[float, float] = (0.5, 0.5),
    flip: bool = False,
    zoom: float = 1.0,
    filter: Filter = "bicubic",
) -> UInt8[Tensor, "c t height width"]:
    """Resize to the smallest size that covers `height x width`, or `zoom` times it; crop; flip.

    The aspect ratio is kept to the rounding of one pixel; smaller sources are enlarged. Resizing
    is antialiased and rounds to uint8, so equal pixels stay equal pixels. Frames that already have
    the wanted size keep their exact values.

    Args:
        frames: uint8 RGB.
        height, width: wanted size in pixels.
        crop: position of the crop in the resized frame, from the top left (0, 0) to the bottom
            right (1, 1).
        flip: mirror left and right.
        zoom: factor of that size, at least 1; no larger one than that of the frames is taken for
            it.
        filter: kernel of the resize.

    Returns:
        uint8; `common.pixels.to_float` makes model input of it.
    """
    video = rearrange(torch.as_tensor(frames), "t h w c -> t c h w")
    h, w = covering_size(video.shape[-2], video.shape[-1], height, width)
    zoom = max(1.0, min(zoom, video.shape[-2] / h))
    h, w = round(zoom * h), round(zoom * w)
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
