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
from vae.base import ResidualLayer
from vae.convs import Chunk, TemporalConv

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
        front, back = self.ends
        if self.fill == "zero":
            return super().forward(F.pad(input, (0, 0, 0, 0, front, back)))
        parts = [input[:, :, :1]] * front + [input] + [input[:, :, -1:]] * back
        return super().forward(torch.cat(parts, dim=2))


class GroupCausalConv3d(TemporalConv):
    """`TemporalConv` of a whole video, with the margins and strides that OD-VAE's layers have.

    The input is one image frame, then groups of `group` frames. A temporal stride of 2 keeps the
    image frame and frames 0, 2, ... of each group.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, group: int, margin: int = 1, stride: Size = 1
    ):
        """`margin`: pixels of zeros around a frame; `stride` in time 1 or 2."""
        super().__init__(in_channels, out_channels, group=group, causal=False)
        self.margin = margin
        self.stride = (stride,) * 3 if isinstance(stride, int) else stride

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """`b c 1+n*group h w` -> `b c' t' h' w'`; t' = 1 + n * group / stride."""
        chunk = Chunk(batch_size=len(input), image=True, past={}, last=True)
        y = self.run(rearrange(input, "b c t h w -> (b t) c h w"), chunk)
        y = y if self.stride[0] == 1 else chunk.kept(y)
        return rearrange(y, "(b t) c h w -> b c t h w", b=len(input))


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
        return per_frame(super().forward, input)


class FrameNorm(nn.GroupNorm):
    """GroupNorm with statistics of every frame on its own."""

    def forward(self, input: Tensor) -> Tensor:
        """`b c t h w` -> the same shape."""
        return per_frame(super().forward, input)


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer for images on every frame: `b c t h w` -> `b c' t h' w'`."""
    y = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0])


class Named(nn.Module):
    """A layer whose weights bear the name `conv`, as in the official checkpoints."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Output of the layer."""
        return self.conv(x)


class ResidualBlock(ResidualLayer):
    """norm, SiLU, conv, norm, SiLU, conv, plus a shortcut of kernel 1 if the channels change."""

    end = "conv2"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Callable[[int], nn.Module],
        conv: New,
        conv2: New | None = None,
        shortcut: New,
        shortcut_name: str = "nin_shortcut",
    ):
        """`conv2` where the second convolution is another than the first, `conv`."""
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = conv(in_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.conv2 = (conv2 or conv)(out_channels, out_channels)
        self.shortcut_name = shortcut_name if in_channels != out_channels else None
        if self.shortcut_name:
            self.add_module(self.shortcut_name, shortcut(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t h w`."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.get_submodule(self.shortcut_name)(x) if self.shortcut_name else x)


class SpatialAttention(ResidualLayer):
    """Single-head self-attention over the positions of each frame."""

    end = "proj_out"

    def __init__(self, channels: int, *, norm: Callable[[int], nn.Module], conv: New):
        super().__init__()
        self.norm = norm(channels)
        self.q = conv(channels, channels)
        self.k = conv(channels, channels)
        self.v = conv(channels, channels)
        self.proj_out = conv(channels, channels)

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


class Downsample(Named):
    """Zeros to the right and below, then a convolution of stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c t' h/2 w/2`."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(Named):
    """Every pixel four times, then a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t 2h 2w`."""
        return self.conv(x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4))


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


def sd_halves(
    encoder: Layers, decoder: Layers, widths: Sequence[int], *, num_blocks: int, z_dim: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of RGB in SD's layout, of levels of `widths` channels.

    The encoder: levels of `num_blocks` residual blocks, halved in between, then the middle and the
    head, which gives mean and log-variance. The decoder: the middle, then levels of one block more,
    from the deepest up; they keep the numbers of the encoder's levels.
    """
    last = len(widths) - 1
    down, up = [], OrderedDict[str, nn.Module]()
    for level, width in enumerate(widths):
        parts = _level(encoder, level, widths[max(level - 1, 0)], width, num_blocks)
        if level < last:
            parts["downsample"] = encoder.resample(level, width)
        down.append(nn.Sequential(parts))
    first = OrderedDict(
        conv_in=encoder.conv_in(3, widths[0]),
        down=nn.Sequential(*down),
        mid=_middle(encoder, last, widths[-1]),
        norm_out=encoder.norm(widths[-1]),
        act=nn.SiLU(),
        conv_out=encoder.conv_out(widths[-1], 2 * z_dim),
    )
    for level in reversed(range(len(widths))):
        before, width = widths[min(level + 1, last)], widths[level]
        parts = _level(decoder, level, before, width, num_blocks + 1)
        if level > 0:
            parts["upsample"] = decoder.resample(level, width)
        up[str(level)] = nn.Sequential(parts)
    second = OrderedDict(
        conv_in=decoder.conv_in(z_dim, widths[-1]),
        mid=_middle(decoder, last, widths[-1]),
        up=nn.Sequential(up),
        norm_out=decoder.norm(widths[0]),
        act=nn.SiLU(),
        conv_out=decoder.conv_out(widths[0], 3),
    )
    return nn.Sequential(first), nn.Sequential(second)


def _level(
    layers: Layers, level: int, before: int, width: int, blocks: int
) -> OrderedDict[str, nn.Module]:
    """Residual blocks, the first of which takes `before` channels."""
    made = [layers.block(level, before if i == 0 else width, width) for i in range(blocks)]
    return OrderedDict(block=nn.Sequential(*made))


def _middle(layers: Layers, level: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            block_1=layers.block(level, width, width),
            attn_1=layers.attention(width),
            block_2=layers.block(level, width, width),
        )
    )
