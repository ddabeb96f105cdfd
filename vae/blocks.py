"""Building blocks of encoder and decoder, all on `(b t) c h w` with channels [branch | branch]."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vae.config import VAEConfig
from vae.convs import Chunk, conv3x3

PAC_DILATIONS = (1, 3, 6, 9, 12)
EPS = 1e-24  # of mean squares: only keeps an all-zero position from dividing by zero


class RMSNorm(nn.Module):
    """x / |x| * sqrt(C) * gain over the C channels of each branch on its own; no bias.

    x / |x| * sqrt(C) is x over its root mean square.
    """

    def __init__(self, channels: int, *, branches: int):
        """`channels` counts all branches."""
        super().__init__()
        self.branches = branches
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(x, "n (k c) h w -> n h w k c", k=self.branches)
        x = F.rms_norm(x, x.shape[-1:], eps=EPS) * rearrange(
            self.gain, "(k c) -> k c", k=self.branches
        )
        return rearrange(x, "n h w k c -> n (k c) h w")


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, dropout, conv, plus a 1x1 shortcut where the channels change.

    The shortcut is a KTC convolution of kernel 1, which is one dense 1x1 convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, branches: int, group: int, dropout: float
    ):
        """`in_channels` and `out_channels` count all branches."""
        super().__init__()
        self.norm1 = RMSNorm(in_channels, branches=branches)
        self.conv1 = conv3x3(in_channels, out_channels, branches=branches, group=group)
        self.norm2 = RMSNorm(out_channels, branches=branches)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, branches=branches, group=group)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)), chunk)
        y = self.conv2(self.dropout(F.silu(self.norm2(y))), chunk)
        return self.shortcut(x) + y


class Attention(nn.Module):
    """Single-head spatial self-attention per frame; each branch has its own and they do not mix."""

    def __init__(self, channels: int, *, branches: int):
        """`channels` counts all branches."""
        super().__init__()
        self.branches = branches
        self.norm = RMSNorm(channels, branches=branches)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, groups=branches)
        self.to_out = nn.Conv2d(channels, channels, 1, groups=branches)

    def forward(self, x: Tensor, chunk: Chunk | None = None) -> Tensor:
        height = x.shape[2]
        qkv = self.to_qkv(self.norm(x))
        q, k, v = rearrange(qkv, "n (k qkv c) h w -> qkv n k (h w) c", k=self.branches, qkv=3)
        y = F.scaled_dot_product_attention(q, k, v)  # n k (h w) c
        return x + self.to_out(rearrange(y, "n k (h w) c -> n (k c) h w", h=height))


class PAC(nn.Module):
    """Parallel atrous convolutions, the paper's temporal motion perception enhancement (TMPE).

    Six convolutions side by side (1x1, 3x3, and 3x3 dilated by 3, 6, 9, 12), ordered branch by
    branch, then a 1x1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, branches: int):
        super().__init__()
        self.branches = branches
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(in_channels, out_channels, 1),
                *(
                    nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
                    for dilation in PAC_DILATIONS
                ),
            ]
        )
        self.fuse = nn.Conv2d(len(self.convs) * out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = [conv(x) for conv in self.convs]
        return self.fuse(rearrange(y, "p n (k z) h w -> n (k p z) h w", k=self.branches))


def residual_block(config: VAEConfig, in_channels: int, level: int) -> ResidualBlock:
    """A residual block of a level; `in_channels` counts all branches."""
    return ResidualBlock(
        in_channels,
        config.widths[level],
        branches=config.branches,
        group=config.group_sizes[level],
        dropout=config.dropout,
    )


def middle(config: VAEConfig) -> nn.ModuleList:
    """Residual block, attention, residual block at the deepest level."""
    width, last = config.widths[-1], len(config.widths) - 1
    return nn.ModuleList(
        [
            residual_block(config, width, last),
            Attention(width, branches=config.branches),
            residual_block(config, width, last),
        ]
    )
