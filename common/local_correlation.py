"""Correlation of neighboring latent positions: one definition for training and evaluation."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

TINY = 1e-6


def local_correlation(
    z: Float[Tensor, "b z t h w"], *, over_processes: bool = False
) -> Float[Tensor, ""]:
    """Mean Pearson correlation over channels of neighboring positions, in [-1, 1].

    Channels are brought to zero mean and unit deviation over b, t, h and w, without gradients.
    Neighbors are the pairs in windows of 2 x 2 x 2 (t, h, w) of the frames after the first, and of
    2 x 2 of the first frame; the two means count equally. White noise has 0, up to 1 / sqrt(z - 1)
    per pair, clips of one value each have 1.

    Args:
        over_processes: take the channels' statistics over all processes.
    Source: SSVAE (arXiv 2512.05394).
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    axes = (0, 2, 3, 4)
    with torch.no_grad():
        count = torch.full_like(z[0, :, 0, 0, 0], z.numel() / z.shape[1], dtype=torch.float64)
        values = z.double()
        sums = torch.stack([count, values.sum(axes), values.square().sum(axes)])
        if over_processes and dist.is_initialized():
            dist.all_reduce(sums)
        mean, square = sums[1] / sums[0], sums[2] / sums[0]
        std = (square - mean.square()).clamp(min=0).sqrt()
        mean, std = (rearrange(x, "z -> z 1 1 1").to(z) for x in (mean, std))
    z = (z - mean) / (std + TINY)
    first, rest = z[:, :, :1], z[:, :, 1:]
    parts = [first] if rest.shape[2] == 0 else [first, rest]
    return torch.stack([_window_correlation(part) for part in parts]).mean()


def _window_correlation(z: Float[Tensor, "b z t h w"]) -> Float[Tensor, ""]:
    """Mean over windows of up to 2 x 2 x 2 of the mean correlation of their pairs."""
    t, h, w = (min(2, side) for side in z.shape[2:])
    z = z[:, :, : z.shape[2] // t * t, : z.shape[3] // h * h, : z.shape[4] // w * w]
    z = rearrange(z, "b z (t i) (h j) (w k) -> (b t h w) (i j k) z", i=t, j=h, k=w)
    unit = F.normalize(z - z.mean(-1, keepdim=True), dim=-1, eps=TINY)
    count = unit.shape[1]
    # the sum over ordered pairs of u_i u_j is |sum u|^2 - sum |u|^2
    pairs = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    return pairs.mean() / (count * (count - 1))
