"""Pixel values: uint8 levels as videos are stored, float in [-1, 1] as models take them."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_float(video: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Levels 0..255 to float32 in [-1, 1], on the video's own device.

    Clips travel from the loader to the device as uint8, a quarter of the bytes. The result is the
    same bit for bit on every device: a divisor that is a tensor there is divided by, where CUDA
    would multiply by the rounded reciprocal of a plain number.
    """
    half = torch.full((), 127.5, device=video.device)
    return video.float().div_(half).sub_(1)
