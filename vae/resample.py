"""Halving and doubling of height, width and the frames of a group.

The layers that do it in time take and give the frames of groups, `b t h w c`, and know the image
frame before them, which they leave as it is.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vae.config import VAEConfig
from vae.convs import Cached, Chunk, TemporalConv

OUTPUTS = (0, 0), (0, 1), (1, 0), (1, 1)
"""Row and column of the four outputs of a pixel."""


class Downsample(nn.Module):
    """Halve height and width, each branch on its own; then, where the config says so, the frames.

    In time the keyframe branch keeps frames 0, 2, ... of a group and the motion branch, or the
    only one, is merged.
    """

    def __init__(self, config: VAEConfig, level: int):
        """From `level` to the next deeper one."""
        super().__init__()
        c, self.branches = config.channels[level], config.branches
        width = self.branches * c
        self.spatial = nn.Conv2d(width, width, 3, stride=2, groups=self.branches)
        self.temporal = None
        if config.temporal_downsample[level]:
            self.temporal = MergePairs(c) if self.branches == 2 else CausalMergePairs(c)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """`(b t) c h w` -> `(b t') c h/2 w/2`; t' = t where time is not halved."""
        if self.temporal is None:
            return shrink(x, self.spatial.weight, self.spatial.bias, groups=self.branches)
        c = self.temporal.in_channels
        image, groups = chunk.split(shrink(x[:, -c:], *_of_branch(self.spatial, -1)))
        motion = chunk.merge(image, self.temporal(groups, image, chunk))
        if self.branches == 1:
            return motion
        keyframe = shrink(chunk.kept(x[:, :-c]), *_of_branch(self.spatial, 0))
        return torch.cat([keyframe, motion], dim=1)


class MergePairs(nn.Conv3d):
    """Two frames to one: Conv3d 2x1x1, stride 2."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, (2, 1, 1), stride=(2, 1, 1))

    def forward(self, groups: Tensor, image: Tensor, chunk: Chunk) -> Tensor:  # type: ignore[override]
        """Frames of the groups, `b t h w c` -> `b t/2 h w c`."""
        return _pointwise(self, rearrange(groups, "b (t k) h w c -> b t h w (k c)", k=2))


class CausalMergePairs(Cached, nn.Conv3d):
    """Two frames and the one before them to one: Conv3d 3x1x1, stride 2."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, groups: Tensor, image: Tensor, chunk: Chunk) -> Tensor:  # type: ignore[override]
        """Frames of the groups, `b t h w c` -> `b t/2 h w c`."""
        before = image if chunk.image else chunk.past[self.name]
        x = torch.cat([before, groups], dim=1)
        if not chunk.last:
            chunk.carry[self.name] = x[:, -1:].clone()
        return _pointwise(self, torch.cat([x[:, :-1:2], x[:, 1::2], x[:, 2::2]], dim=-1))


class Upsample(nn.Module):
    """Where the config says so double the frames of a group; double height and width; halve the
    channels.

    In time the keyframe branch repeats each frame and the motion branch, or the only one, is split.
    In space every pixel is repeated (nearest-exact), then convolved (3x3).
    """

    def __init__(self, config: VAEConfig, level: int):
        """From `level` to the next shallower one."""
        super().__init__()
        c, self.branches = config.channels[level], config.branches
        width = self.branches * c
        self.temporal = None
        if config.temporal_downsample[level - 1]:
            self.temporal = (
                SplitFrames(c) if self.branches == 2 else TemporalSplitFrames(config, level)
            )
        self.spatial = nn.Conv2d(width, width // 2, 3, padding=1, groups=self.branches)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """`(b t) c h w` -> `(b t') c/2 2h 2w`; t' = t where time is not doubled."""
        if self.temporal is None:
            return enlarge(x, self.spatial.weight, self.spatial.bias, groups=self.branches)
        c = self.temporal.in_channels
        image, groups = chunk.split(x[:, -c:])
        groups = self.temporal(groups, image, chunk)
        groups = rearrange(groups, "b t h w (k c) -> b (t k) h w c", k=2)
        motion = enlarge(chunk.merge(image, groups), *_of_branch(self.spatial, -1))
        if self.branches == 1:
            return motion
        image, groups = chunk.split(enlarge(x[:, :-c], *_of_branch(self.spatial, 0)))
        keyframe = chunk.merge(image, repeat(groups, "b t h w c -> b (t k) h w c", k=2))
        return torch.cat([keyframe, motion], dim=1)


def shrink(x: Tensor, weight: Tensor, bias: Tensor | None, *, groups: int = 1) -> Tensor:
    """3x3 convolution of stride 2, of a frame with a row and a column of zeros at the bottom and
    right: `n c h w` -> `n c' h/2 w/2`, of even h and w.
    """
    # padding inside the convolution makes no copy, but a row and a column too many
    return F.conv2d(x, weight, bias, stride=2, padding=2, groups=groups)[:, :, 1:, 1:]


def enlarge(x: Tensor, weight: Tensor, bias: Tensor | None, *, groups: int = 1) -> Tensor:
    """3x3 convolution of a frame whose every pixel is repeated, `n c h w` -> `n c' 2h 2w`.

    Nothing is repeated: of the nine pixels that an output reads only four differ. So each of the
    four outputs of a pixel is a 2x2 convolution with sums of the kernel's rows and columns, 4 / 9
    of the multiplications, and one convolution makes all four.
    """
    h, w, k = *x.shape[2:], groups
    weight = _sum_pairs(_sum_pairs(weight).transpose(-1, -2)).transpose(-1, -2)
    weight = rearrange(weight, "u v (k o) i a b -> (k v u o) i a b", k=k)
    assert bias is not None
    order = torch.arange(len(bias), device=bias.device)
    # picked instead of repeated, because inductor takes no repeated tensor as a bias
    bias = bias[repeat(order, "(k o) -> (k vu o)", k=k, vu=4)]
    y = F.conv2d(x, weight, bias, padding=1, groups=k)  # at the corners of pixels
    parts = rearrange(y, "n (k vu o) y x -> vu n y x (k o)", k=k, vu=4).unbind()
    parts = [part[:, v : v + h, u : u + w] for part, (v, u) in zip(parts, OUTPUTS, strict=True)]
    rows = [torch.stack(parts[:2], dim=3), torch.stack(parts[2:], dim=3)]
    return rearrange(torch.stack(rows, dim=2), "n h v w u c -> n c (h v) (w u)")


def _of_branch(conv: nn.Conv2d, branch: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of one branch of a grouped convolution."""
    assert conv.bias is not None
    return conv.weight.chunk(conv.groups)[branch], conv.bias.chunk(conv.groups)[branch]


def _sum_pairs(weight: Tensor) -> Tensor:
    """Kernel rows (a, b, c) -> rows (a, b + c) for even outputs and (a + b, c) for odd ones."""
    a, b, c = weight.unbind(-2)
    return torch.stack([torch.stack([a, b + c], dim=-2), torch.stack([a + b, c], dim=-2)])


class SplitFrames(nn.Conv3d):
    """One frame to the channels of two: Conv3d 1x1x1, C -> 2C."""

    def __init__(self, channels: int):
        super().__init__(channels, 2 * channels, 1)

    def forward(self, groups: Tensor, image: Tensor, chunk: Chunk) -> Tensor:  # type: ignore[override]
        """Frames of the groups, `b t h w c` -> `b t h w 2c`."""
        # axes in their order, so that the gradient lies in memory as the weight does (DDP wants it)
        return F.linear(groups, rearrange(self.weight, "o i 1 1 1 -> o i"), self.bias)


class TemporalSplitFrames(TemporalConv):
    """One frame and its neighbors to the channels of two: TemporalConv 3x1x1, C -> 2C.

    The causal one does not see the image frame.
    """

    def __init__(self, config: VAEConfig, level: int):
        c, group = config.channels[level], config.group_sizes[level]
        super().__init__(c, 2 * c, group=group, causal=config.temporal == "causal", size=1)

    def forward(self, groups: Tensor, image: Tensor, chunk: Chunk) -> Tensor:  # type: ignore[override]
        """Frames of the groups, `b t h w c` -> `b t h w 2c`."""
        if self.causal:
            chunk = replace(chunk, image=False)  # with the same carry
            image = image[:, :0]
        return chunk.split(super().forward(chunk.merge(image, groups), chunk))[1]


def _pointwise(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """`conv`, whose temporal taps stand one after the other in the channels of `x`."""
    return F.linear(x, rearrange(conv.weight, "o i k 1 1 -> o (k i)"), conv.bias)
