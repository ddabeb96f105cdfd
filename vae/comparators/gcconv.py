"""Group causal convolution as a layer of `b c t h w`, for models that are not ours."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vae.comparators.blocks import Size


class GroupCausalConv3d(nn.Conv3d):
    """Convolution over three frames that reads frames of the same group in both directions and of
    the groups before, never of a later group (paper, Sec. 3.3; `vae.convs.TemporalConv`).

    The input is one image frame, then groups of `group` frames. A group is padded by the frame
    before it and by a zero frame; the image frame by itself and a zero frame.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        group: int,
        margin: int = 1,
        stride: Size = 1,
    ):
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=(0, margin, margin))
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        image = input[:, :, :1]
        y = super().forward(_padded(image, image))
        if input.shape[2] == 1:
            return y
        groups = rearrange(input[:, :, 1:], "b c (n g) h w -> (b n) c g h w", g=self.group)
        before = rearrange(input[:, :, : -1 : self.group], "b c n h w -> (b n) c 1 h w")
        later = super().forward(_padded(before, groups))
        later = rearrange(later, "(b n) c g h w -> b c (n g) h w", b=input.shape[0])
        return torch.cat([y, later], dim=2)


def _padded(before: Tensor, frames: Tensor) -> Tensor:
    return F.pad(torch.cat([before, frames], dim=2), (0, 0, 0, 0, 0, 1))
