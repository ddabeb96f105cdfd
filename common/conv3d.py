"""A 3D convolution that is right for a single frame, too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, with 2D convolutions where the input has one frame.

    In bfloat16 on CPUs with AMX or AVX-512 bf16, oneDNN gives NaN or garbage for a 3D convolution
    of a single frame (seen with torch 2.12.1). All other frames that the kernel reads are zeros of
    the padding, so the one temporal tap that reads the frame itself is all there is to compute.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t' h' w'`, as `nn.Conv3d` up to rounding."""
        if input.ndim != 5 or input.shape[2] != 1 or self.padding_mode != "zeros":
            return super().forward(input)
        assert not isinstance(self.padding, str)
        taps, stride, (edge, *padding) = self.kernel_size[0], self.stride, self.padding
        reach = self.dilation[0] * (taps - 1) + 1
        frames = []
        for start in range(0, 1 + 2 * edge - reach + 1, stride[0]):
            tap, between = divmod(edge - start, self.dilation[0])
            reads = not between and 0 <= tap < taps
            frames.append(
                F.conv2d(
                    input[:, :, 0],
                    self.weight[:, :, tap] if reads else torch.zeros_like(self.weight[:, :, 0]),
                    self.bias,
                    stride[1:],
                    padding,
                    self.dilation[1:],
                    self.groups,
                )
            )
        if not frames:
            return super().forward(input)  # PyTorch's own error: the kernel is larger
        return torch.stack(frames, dim=2)
