"""What a VAE costs: parameters, and multiply-accumulates as the paper counts them."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vae.base import VideoAutoencoder
from vae.blocks import Attention
from vae.config import LatentConfig
from vae.convs import KTCConv
from vae.model import VideoVAE
from vae.parts import weights_hash
from vae.resample import Downsample, Upsample

MACS_SIZE = (17, 512, 512)  # frames, height and width of the supplement's Table 3


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one pass; a FLOP count is twice as many."""

    convolution: int
    """Of convolutions: every weight once for every output position, padding included. The paper's
    "FLOPS" are these of both halves (supplement, Table 3)."""
    attention: int
    """Of the products of attention: queries with keys, weights with values."""


def count_parameters(kind: type[VideoAutoencoder], config: LatentConfig) -> int:
    """Number of weights of the VAE of `config`."""
    with torch.device("meta"):
        return sum(p.numel() for p in kind(config).parameters())


def count_macs(
    kind: type[VideoAutoencoder], config: LatentConfig, frames: int, height: int, width: int
) -> tuple[Macs, Macs]:
    """(encoder, decoder) for one video of this size, as one window; nothing is computed.

    Of ours it is the count of the plain form of every layer. What runs is less: taps that read
    padding, frames that nothing reads and repeated pixels are left out. Linear layers count as
    convolutions.

    Raises:
        ValueError: a size that the VAE does not take.
    """
    latent = config.latent_shape(frames, height, width)
    with torch.device("meta"):
        model = kind(config).to("meta")  # constants, too
        video, z = torch.empty(1, 3, frames, height, width), torch.empty(1, *latent)
    counts = []
    for call in (lambda: model.moments(video), lambda: model.frames(z, frames)):
        plain = _PlainCounter(model) if isinstance(model, VideoVAE) else None
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        if plain is not None:
            counts.append(plain.finish())
            continue
        macs = {op: flops // 2 for op, flops in counter.get_flop_counts()["Global"].items()}
        attention = sum(count for op, count in macs.items() if op is torch.ops.aten.bmm)
        counts.append(Macs(sum(macs.values()) - attention, attention))
    return counts[0], counts[1]


def describe_vae(vae: VideoAutoencoder) -> dict[str, Any]:
    """What a model is and costs, ready for JSON.

    Returns:
        `class`, `sha256` (of the weights), `windows` and `native_window` (where results depend on
        them), `config`, `parameters`, and at `MACS_SIZE` `macs` (of convolutions) and `flops`.
    """
    macs = count_macs(type(vae), vae.config, *MACS_SIZE)
    return {
        "class": type(vae).__name__,
        "sha256": weights_hash(vae),
        "windows": None if vae.native_window is None else vae.config.windows,
        "native_window": vae.native_window,
        "config": asdict(vae.config),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "macs": sum(half.convolution for half in macs),
        "flops": 2 * sum(half.convolution + half.attention for half in macs),
    }


class _PlainCounter:
    """Counts the plain form of the layers of `model` that run until `finish`."""

    def __init__(self, model: VideoVAE):
        self.convolution = self.attention = 0
        self.handles = [
            module.register_forward_hook(hook)
            for module in model.modules()
            for kinds, hook in (
                ((nn.Conv2d, nn.Conv3d, KTCConv), self._count_convolution),
                ((Downsample, Upsample), self._count_resampling),
                (Attention, self._count_attention),
            )
            if isinstance(module, kinds)
        ]

    def finish(self) -> Macs:
        for handle in self.handles:
            handle.remove()
        return Macs(self.convolution, self.attention)

    def _count_convolution(self, module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        convs = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
        positions = y.numel() // sum(conv.out_channels for conv in convs)
        self.convolution += positions * sum(conv.weight.numel() for conv in convs)

    def _count_resampling(
        self, module: Downsample | Upsample, inputs: tuple[Tensor, ...], y: Tensor
    ) -> None:
        """The convolution in space, before time is halved or after it is doubled."""
        frames = max(len(inputs[0]), len(y))
        self.convolution += frames * y[0, 0].numel() * module.spatial.weight.numel()

    def _count_attention(self, module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        n, c, h, w = y.shape
        self.attention += 2 * n * c * (h * w) ** 2
