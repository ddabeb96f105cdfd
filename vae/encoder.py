"""Frames to posterior moments."""

import torch.nn.functional as F
from torch import Tensor, nn

from vae.blocks import PAC, Attention, RMSNorm, middle, residual_block
from vae.config import VAEConfig
from vae.convs import Chunk, Downsample, conv3x3


class Encoder(nn.Module):
    """`(b t) 3 h w` -> `(b t') (k 2z') h/8 w/8`: of each branch k mean and log-variance."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        k, widths = config.branches, config.widths
        last = len(widths) - 1
        self.conv_in = conv3x3(3, widths[0], branches=k, group=config.group_sizes[0])
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            for i in range(config.num_blocks):
                before = widths[max(level - 1, 0)] if i == 0 else width
                layers.append(residual_block(config, before, level))
                if level == last:
                    layers.append(Attention(width, branches=k))
            if level < last:
                temporal = config.temporal_downsample[level]
                layers.append(Downsample(config.channels[level], branches=k, temporal=temporal))
            if level == last - 1:
                layers.append(Attention(width, branches=k))
        self.layers = nn.ModuleList(layers)
        self.middle = middle(config)
        self.norm_out = RMSNorm(widths[last], branches=k)
        self.head = PAC(widths[last], 2 * config.z_dim, branches=k)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        x = self.conv_in(x, chunk)
        for layer in (*self.layers, *self.middle):
            x = layer(x, chunk)
        return self.head(F.silu(self.norm_out(x)))
