"""Latents to frames."""

import torch.nn.functional as F
from torch import Tensor, nn

from vae.blocks import Attention, RMSNorm, middle, residual_block
from vae.config import VAEConfig
from vae.convs import Chunk, Conv2d, Upsample, conv3x3


class Decoder(nn.Module):
    """`(b t') z h/8 w/8` -> `(b t) (k 3) h w`: RGB of every frame from each branch k."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        k, widths = config.branches, config.widths
        last = len(widths) - 1
        width = widths[last]
        self.conv_in = Conv2d(config.z_dim, width, 3, padding=1)
        self.middle = middle(config)
        layers: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            for i in range(config.num_blocks + 1):
                layers.append(residual_block(config, width if i == 0 else widths[level], level))
                if level == last:
                    layers.append(Attention(widths[level], branches=k))
            width = widths[level] // 2
            if level > 0:
                temporal = config.temporal_downsample[level - 1]
                layers.append(Upsample(config.channels[level], branches=k, temporal=temporal))
        self.layers = nn.ModuleList(layers)
        self.norm_out = RMSNorm(widths[0], branches=k)
        self.head = conv3x3(widths[0], 3 * k, branches=k, group=config.group_sizes[0])

    def forward(self, z: Tensor, chunk: Chunk) -> Tensor:
        x = self.conv_in(z, chunk)
        for layer in (*self.middle, *self.layers):
            x = layer(x, chunk)
        return self.head(F.silu(self.norm_out(x)), chunk)
