"""What the comparators have in common: padded convolutions, norms, the layout of SD's image VAE.

All layers take and give `b c t h w`. Modules bear the names of the official checkpoints.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from common.conv3d import Conv3d

Size = int | tuple[int, int, int]
New = Callable[[int, int], nn.Module]
"""(input channels, output channels) -> layer."""


class PaddedConv3d(Conv3d):
    """Conv3d that pads height and width with zeros and time with frames of its own choice."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size = 3,
        *,
        front: int = 0,
        back: int = 0,
        fill: Literal["zero", "repeat"] = "zero",
        margin: int | None = None,
        stride: Size = 1,
        bias: bool = True,
    ):
        """`front` and `back`: frames to add before and after, zeros or copies of the first and last
        frame; `margin`: pixels of zeros around a frame, by default those that keep its size.
        """
        sides = kernel if isinstance(kernel, int) else kernel[-1]
        edge = sides // 2 if margin is None else margin
        super().__init__(
            in_channels, out_channels, kernel, stride=stride, padding=(0, edge, edge), bias=bias
        )
        self.ends = (front, back)
        self.fill = fill

    def forward(self, input: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t' h' w'`."""
        if self.fill == "repeat":
            return super().forward(repeat_ends(input, *self.ends))
        return super().forward(F.pad(input, (0, 0, 0, 0, *self.ends)))


class FrameConv2d(nn.Conv2d):
    """Conv2d of every frame on its own."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        margin: int | None = None,
    ):
        edge = kernel // 2 if margin is None else margin
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=edge)

    def forward(self, input: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t h' w'`."""
        y = super().forward(rearrange(input, "b c t h w -> (b t) c h w"))
        return rearrange(y, "(b t) c h w -> b c t h w", b=input.shape[0])


class FrameNorm(nn.GroupNorm):
    """GroupNorm with statistics of every frame on its own."""

    def forward(self, input: Tensor) -> Tensor:
        """`b c t h w` -> the same shape."""
        y = super().forward(rearrange(input, "b c t h w -> (b t) c h w"))
        return rearrange(y, "(b t) c h w -> b c t h w", b=input.shape[0])


class Named(nn.Module):
    """A layer whose weights bear the name `conv`, as in the official checkpoints."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Output of the layer."""
        return self.conv(x)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus a shortcut of kernel 1 if the channels change."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Callable[[int], nn.Module],
        conv1: New,
        conv2: New,
        shortcut: New,
        shortcut_name: str = "nin_shortcut",
    ):
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = conv1(in_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.conv2 = conv2(out_channels, out_channels)
        self.shortcut_name = shortcut_name if in_channels != out_channels else None
        if self.shortcut_name:
            self.add_module(self.shortcut_name, shortcut(in_channels, out_channels))

    @property
    def last(self) -> nn.Module:
        """The layer whose output is added to the input."""
        return self.conv2

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t h w`."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.get_submodule(self.shortcut_name)(x) if self.shortcut_name else x)


class SpatialAttention(nn.Module):
    """Single-head self-attention over the positions of each frame."""

    def __init__(self, channels: int, *, norm: Callable[[int], nn.Module], conv: New):
        super().__init__()
        self.norm = norm(channels)
        self.q = conv(channels, channels)
        self.k = conv(channels, channels)
        self.v = conv(channels, channels)
        self.proj_out = conv(channels, channels)

    @property
    def last(self) -> nn.Module:
        """The layer whose output is added to the input."""
        return self.proj_out

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> the same shape, with the residual."""
        return x + self.attend(x)

    def attend(self, x: Tensor) -> Tensor:
        """What attention adds to `x`."""
        b, _, _, h, _ = x.shape
        y = self.norm(x)
        q, k, v = (
            rearrange(layer(y), "b c t h w -> (b t) 1 (h w) c")
            for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v)  # (b t) 1 (h w) c
        return self.proj_out(rearrange(y, "(b t) 1 (h w) c -> b c t h w", b=b, h=h))


class Downsample(nn.Module):
    """Zeros to the right and below, then a convolution of stride 2."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c t' h/2 w/2`."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every pixel four times, then a convolution."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c t 2h 2w`."""
        return self.conv(enlarge(x))


def repeat_ends(x: Tensor, front: int, back: int) -> Tensor:
    """Copies of the first frame in front and of the last one behind."""
    return torch.cat([x[:, :, :1]] * front + [x] + [x[:, :, -1:]] * back, dim=2)


def enlarge(x: Tensor) -> Tensor:
    """Twice the height and width by repeating pixels."""
    return x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What an encoder or decoder of SD's layout is made of."""

    norm: Callable[[int], nn.Module]
    """(channels) -> the last norm."""
    conv_in: New
    conv_out: New
    block: Callable[[int, int, int], nn.Module]
    """(level, input channels, output channels) -> residual block."""
    attention: Callable[[int], nn.Module]
    """(channels) -> attention of the middle."""
    resample: Callable[[int, int], nn.Module]
    """(level, channels) -> downsampling or upsampling at the end of a level."""


def sd_encoder(
    layers: Layers, widths: Sequence[int], *, num_blocks: int, in_channels: int, out_channels: int
) -> nn.Sequential:
    """Levels of `num_blocks` residual blocks, halved in between, then the middle and the head."""
    levels, last = [], len(widths) - 1
    for level, width in enumerate(widths):
        before = widths[max(level - 1, 0)]
        blocks = [
            layers.block(level, before if i == 0 else width, width) for i in range(num_blocks)
        ]
        parts = OrderedDict[str, nn.Module](block=nn.Sequential(*blocks))
        if level < last:
            parts["downsample"] = layers.resample(level, width)
        levels.append(nn.Sequential(parts))
    return nn.Sequential(
        OrderedDict(
            conv_in=layers.conv_in(in_channels, widths[0]),
            down=nn.Sequential(*levels),
            mid=_middle(layers, last, widths[-1]),
            norm_out=layers.norm(widths[-1]),
            act=nn.SiLU(),
            conv_out=layers.conv_out(widths[-1], out_channels),
        )
    )


def sd_decoder(
    layers: Layers, widths: Sequence[int], *, num_blocks: int, in_channels: int, out_channels: int
) -> nn.Sequential:
    """The middle, then levels of one block more, from the deepest up; they keep the numbers of the
    encoder's levels.
    """
    levels, last = OrderedDict[str, nn.Module](), len(widths) - 1
    for level in reversed(range(len(widths))):
        before, width = widths[min(level + 1, last)], widths[level]
        blocks = [
            layers.block(level, before if i == 0 else width, width) for i in range(num_blocks + 1)
        ]
        parts = OrderedDict[str, nn.Module](block=nn.Sequential(*blocks))
        if level > 0:
            parts["upsample"] = layers.resample(level, width)
        levels[str(level)] = nn.Sequential(parts)
    return nn.Sequential(
        OrderedDict(
            conv_in=layers.conv_in(in_channels, widths[-1]),
            mid=_middle(layers, last, widths[-1]),
            up=nn.Sequential(levels),
            norm_out=layers.norm(widths[0]),
            act=nn.SiLU(),
            conv_out=layers.conv_out(widths[0], out_channels),
        )
    )


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Frames of both in turn, b c 2t h w."""
    return rearrange(torch.stack([first, second], dim=3), "b c t k h w -> b c (t k) h w")


def _middle(layers: Layers, level: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            block_1=layers.block(level, width, width),
            attn_1=layers.attention(width),
            block_2=layers.block(level, width, width),
        )
    )
