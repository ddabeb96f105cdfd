"""3D convolutions that are right for a single frame, too.

In bfloat16 on CPUs with AMX or AVX-512 bf16, oneDNN gives NaN or garbage for a 3D convolution of a
single frame (seen with torch 2.12.1). All other frames that the kernel reads are zeros of the
padding, so the one temporal tap that reads the frame itself is all there is to compute.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Sizes = int | Sequence[int]
"""Of t, h and w, or of all three."""


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, with 2D convolutions where the input has one frame."""

    def forward(self, input: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t' h' w'`, as `nn.Conv3d` up to rounding."""
        if self.padding_mode != "zeros":
            return super().forward(input)
        shape = self.stride, self.padding, self.dilation, self.groups
        return conv3d(input, self.weight, self.bias, *shape)


class SingleFrames(TorchFunctionMode):
    """Inside of it, models that others wrote convolve single frames as `Conv3d` does."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        function = conv3d if func is F.conv3d else func
        return function(*args, **(kwargs or {}))


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv3d`, up to rounding; 2D convolutions where the input has one frame.

    Args:
        input: `b c t h w`.
        weight: `c' c t h w`.
    """
    whole: Any = (input, weight, bias, stride, padding, dilation, groups)
    if input.ndim != 5 or input.shape[2] != 1 or isinstance(padding, str):
        return F.conv3d(*whole)
    (step, *stride), (edge, *padding), (spread, *dilation) = map(
        _triple, (stride, padding, dilation)
    )
    taps = weight.shape[2]
    reach = spread * (taps - 1) + 1
    frames = []
    for start in range(0, 1 + 2 * edge - reach + 1, step):
        tap, between = divmod(edge - start, spread)
        reads = not between and 0 <= tap < taps
        kernel = weight[:, :, tap] if reads else torch.zeros_like(weight[:, :, 0])
        frame = F.conv2d(input[:, :, 0], kernel, bias, stride, padding, dilation, groups)
        frames.append(frame)
    # Without frames the kernel is longer than the clip, which is PyTorch's own error
    return torch.stack(frames, dim=2) if frames else F.conv3d(*whole)


def _triple(sizes: Sizes) -> tuple[int, ...]:
    return (sizes,) * 3 if isinstance(sizes, int) else tuple(sizes)
