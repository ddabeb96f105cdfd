"""Halving and doubling of height, width and the frames of a group.

The layers that do it in time take and give the frames of groups, `b t h w c`, and know the image
frame before them, which they leave as it is.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vae.config import VAEConfig
from vae.convs import Cached, Chunk, TemporalConv


class Downsample(nn.Module):
    """Halve height and width, each branch on its own; then, where the config says so, the frames.

    In time the keyframe branch keeps frames 0, 2, ... of a group and the motion branch, or the
    only one, is merged.
    """

    def __init__(self, config: VAEConfig, level: int):
        """From `level` to the next deeper one."""
        super().__init__()
        c, k = config.channels[level], config.branches
        self.spatial = nn.Conv2d(k * c, k * c, 3, stride=2, groups=k)
        self.temporal = None
        if config.temporal_downsample[level]:
            self.temporal = MergePairs(c) if k == 2 else CausalMergePairs(c)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        x = self.spatial(F.pad(x, (0, 1, 0, 1)))
        if self.temporal is None:
            return x
        image, groups = chunk.split(x)
        c = self.temporal.in_channels
        merged = self.temporal(groups[..., -c:], image, chunk)
        return chunk.merge(image, torch.cat([groups[:, ::2, ..., :-c], merged], dim=-1))


class MergePairs(nn.Conv3d):
    """Two frames to one: Conv3d 2x1x1, stride 2."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, (2, 1, 1), stride=(2, 1, 1))

    def forward(self, groups: Tensor, image: Tensor, chunk: Chunk) -> Tensor:  # type: ignore[override]
        return _pointwise(self, rearrange(groups, "b (t k) h w c -> b t h w (k c)", k=2))


class CausalMergePairs(Cached, nn.Conv3d):
    """Two frames and the one before them to one: Conv3d 3x1x1, stride 2."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, groups: Tensor, image: Tensor, chunk: Chunk) -> Tensor:  # type: ignore[override]
        before = image if chunk.image else chunk.past[self.name]
        x = torch.cat([before, groups], dim=1)
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
        c, k = config.channels[level], config.branches
        self.temporal = None
        if config.temporal_downsample[level - 1]:
            self.temporal = SplitFrames(c) if k == 2 else TemporalSplitFrames(config, level)
        self.spatial = RepeatConv2d(k * c, k * c // 2, groups=k)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        if self.temporal is not None:
            image, groups = chunk.split(x)
            c = self.temporal.in_channels
            keyframe = repeat(groups[..., :-c], "b t h w c -> b (t k) h w c", k=2)
            split = self.temporal(groups[..., -c:], image, chunk)
            split = rearrange(split, "b t h w (k c) -> b (t k) h w c", k=2)
            x = chunk.merge(image, torch.cat([keyframe, split], dim=-1))
        return self.spatial(x)


class RepeatConv2d(nn.Conv2d):
    """3x3 convolution of a frame whose every pixel is repeated, `n c h w` -> `n c' 2h 2w`.

    Nothing is repeated: of the nine pixels that an output reads only four differ. So each of the
    four outputs of a pixel is a 2x2 convolution with sums of the kernel's rows and columns, 4 / 9
    of the multiplications, and one convolution makes all four.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int):
        super().__init__(in_channels, out_channels, 3, padding=1, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        h, w, k = *input.shape[2:], self.groups
        weight = _sum_pairs(_sum_pairs(self.weight).transpose(-1, -2)).transpose(-1, -2)
        weight = rearrange(weight, "u v (k o) i a b -> (k v u o) i a b", k=k)
        assert self.bias is not None
        bias = repeat(self.bias, "(k o) -> (k vu o)", k=k, vu=4)
        y = F.conv2d(input, weight, bias, padding=1, groups=k)  # at the corners of pixels
        y = rearrange(y, "n (k v u o) y x -> v u n y x (k o)", k=k, v=2, u=2)
        rows = [
            torch.stack([y[v, u, :, v : v + h, u : u + w] for u in (0, 1)], dim=3) for v in (0, 1)
        ]
        return rearrange(torch.stack(rows, dim=2), "n h v w u c -> n c (h v) (w u)")


def _sum_pairs(weight: Tensor) -> Tensor:
    """Kernel rows (a, b, c) -> rows (a, b + c) for even outputs and (a + b, c) for odd ones."""
    a, b, c = weight.unbind(-2)
    return torch.stack([torch.stack([a, b + c], dim=-2), torch.stack([a + b, c], dim=-2)])


class SplitFrames(nn.Conv3d):
    """One frame to the channels of two: Conv3d 1x1x1, C -> 2C."""

    def __init__(self, channels: int):
        super().__init__(channels, 2 * channels, 1)

    def forward(self, groups: Tensor, image: Tensor, chunk: Chunk) -> Tensor:  # type: ignore[override]
        return _pointwise(self, groups)


class TemporalSplitFrames(TemporalConv):
    """One frame and its neighbours to the channels of two: TemporalConv 3x1x1, C -> 2C.

    The causal one does not see the image frame.
    """

    def __init__(self, config: VAEConfig, level: int):
        c, group = config.channels[level], config.group_sizes[level]
        super().__init__(c, 2 * c, group=group, causal=config.temporal == "causal", size=1)

    def forward(self, groups: Tensor, image: Tensor, chunk: Chunk) -> Tensor:  # type: ignore[override]
        if self.causal:
            chunk = Chunk(chunk.batch, False, chunk.past, chunk.carry)
            image = image[:, :0]
            if not groups.shape[1]:
                return groups.repeat(1, 1, 1, 1, 2)  # the image frame alone: nothing to split
        return chunk.split(super().forward(chunk.merge(image, groups), chunk))[1]


def _pointwise(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """`conv`, whose temporal taps stand one after the other in the channels of `x`."""
    return F.linear(x, rearrange(conv.weight, "o i k 1 1 -> o (k i)"), conv.bias)
