"""Building blocks of encoder and decoder, all on `(b t) c h w` with channels [branch | branch]."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vae.base import ResidualLayer
from vae.config import VAEConfig
from vae.convs import Chunk, conv3x3
from vae.norms import NormSiLU, RMSNorm

PAC_DILATIONS = (1, 3, 6, 9, 12)


class ResidualBlock(ResidualLayer):
    """norm, SiLU, conv, norm, SiLU, dropout, conv, plus a 1x1 shortcut where the channels change.

    The shortcut is a KTC convolution of kernel 1, which is one dense 1x1 convolution.
    """

    end = "conv2"

    def __init__(
        self, config: VAEConfig, level: int, in_channels: int, *, halved_next: bool = False
    ):
        """`in_channels` count all branches; the output has the channels of `level`.

        `halved_next`: time is halved next, so that frames of the keyframe branch which that drops
        (those not in `Chunk.kept`) may be anything.
        """
        super().__init__()
        out_channels, branches = config.widths[level], config.branches
        self.norm1 = NormSiLU(in_channels, branches=branches)
        self.conv1 = conv3x3(config, level, in_channels, out_channels)
        self.norm2 = NormSiLU(out_channels, branches=branches)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = conv3x3(config, level, out_channels, out_channels, halved_next=halved_next)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """`(b t) c h w` -> `(b t) c' h w`."""
        y = self.conv1(self.norm1(x), chunk)
        y = self.conv2(self.dropout(self.norm2(y)), chunk)
        return self.shortcut(x) + y


class Attention(ResidualLayer):
    """Single-head spatial self-attention per frame; each branch has its own and they do not mix."""

    end = "to_out"

    def __init__(self, channels: int, *, branches: int):
        """`channels` counts all branches."""
        super().__init__()
        self.branches = branches
        self.norm = RMSNorm(channels, branches=branches)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, groups=branches)
        self.to_out = nn.Conv2d(channels, channels, 1, groups=branches)

    def forward(self, x: Tensor, chunk: Chunk | None = None) -> Tensor:
        """`(b t) c h w` -> the same shape, with the residual; `chunk` is not used."""
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

    def __init__(self, config: VAEConfig, level: int, in_channels: int, out_channels: int):
        """Called like `conv3x3`; the channels count all branches."""
        super().__init__()
        self.branches = config.branches
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

    def forward(self, x: Tensor, chunk: Chunk | None = None) -> Tensor:
        """`(b t) c h w` -> `(b t) c' h w`; `chunk` is not used."""
        y = [conv(x) for conv in self.convs]
        return self.fuse(rearrange(y, "p n (k z) h w -> n (k p z) h w", k=self.branches))


def middle(config: VAEConfig) -> nn.ModuleList:
    """Residual block, attention, residual block at the deepest level."""
    last = len(config.widths) - 1
    width = config.widths[last]
    return nn.ModuleList(
        [
            ResidualBlock(config, last, width),
            Attention(width, branches=config.branches),
            ResidualBlock(config, last, width),
        ]
    )
