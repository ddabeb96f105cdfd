"""Frames to posterior moments."""

from torch import Tensor, nn

from vae.blocks import PAC, Attention, NormSiLU, ResidualBlock, middle
from vae.config import VAEConfig
from vae.convs import Chunk, conv3x3
from vae.resample import Downsample


class Encoder(nn.Module):
    """`(b t) 3 h w` -> `(b t') (k 2z') h/8 w/8`: of each branch k mean and log-variance."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        k, widths = config.branches, config.widths
        last = len(widths) - 1
        self.conv_in = conv3x3(config, 0, 3, widths[0])
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            for i in range(config.num_blocks):
                before = widths[max(level - 1, 0)] if i == 0 else width
                halved = (*config.temporal_downsample, False)[level] and i == config.num_blocks - 1
                layers.append(ResidualBlock(config, level, before, halved_next=halved))
                if level == last and config.tmpe:
                    layers.append(Attention(width, branches=k))
            if level < last:
                layers.append(Downsample(config, level))
            if level == last - 1 and config.tmpe:
                layers.append(Attention(width, branches=k))
        self.layers = nn.ModuleList(layers)
        self.middle = middle(config)
        self.norm_out = NormSiLU(widths[last], branches=k)
        head = PAC if config.tmpe else conv3x3
        self.head = head(config, last, widths[last], 2 * config.z_dim)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """Encode the frames of `chunk`."""
        x = self.conv_in(x, chunk)
        for layer in (*self.layers, *self.middle):
            x = layer(x, chunk)
        return self.head(self.norm_out(x), chunk)
