"""Latents to frames."""

from torch import Tensor, nn

from vae.blocks import Attention, NormSiLU, ResidualBlock, middle
from vae.config import VAEConfig
from vae.convs import Chunk, conv3x3
from vae.resample import Upsample


class Decoder(nn.Module):
    """`(b t') z h/8 w/8` -> `(b t) (k 3) h w`: RGB of every frame from each branch k."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        k, widths = config.branches, config.widths
        last = len(widths) - 1
        width = widths[last]
        self.conv_in = conv3x3(config, last, config.z_dim, width)
        self.middle = middle(config)
        layers: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            for i in range(config.num_blocks + 1):
                layers.append(ResidualBlock(config, level, width if i == 0 else widths[level]))
                if level == last and config.tmpe:
                    layers.append(Attention(widths[level], branches=k))
            width = widths[level] // 2
            if level > 0:
                layers.append(Upsample(config, level))
        self.layers = nn.ModuleList(layers)
        self.norm_out = NormSiLU(widths[0], branches=k)
        self.head = conv3x3(config, 0, widths[0], 3 * k)

    def forward(self, z: Tensor, chunk: Chunk) -> Tensor:
        """Decode the latent frames of `chunk`."""
        x = self.conv_in(z, chunk)
        for layer in (*self.middle, *self.layers):
            x = layer(x, chunk)
        return self.head(self.norm_out(x), chunk)
