"""The windows of the official inference: runs of frames, and tiles of a frame, one after the other.

They change the result of these models, whose norms see all of a window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Runs of `length` frames; neighbors share `overlap`, and the later one drops as many outputs.

    Source of the lengths: each model's official inference.
    """

    length: int
    """Input frames of a window."""
    overlap: int = 0
    """Input frames that neighbors share, and output frames that every window but the first drops.
    """

    def spans(self, total: int) -> list[slice]:
        """The windows of `total` frames; the last one may be shorter."""
        stride = self.length - self.overlap
        starts = range(0, max(total - self.overlap, 1), stride)
        return [slice(start, start + self.length) for start in starts]

    def run(self, step: Run, x: Tensor) -> Tensor:
        """`step` of every window of `x` (b c t h w), joined along t."""
        parts = [step(x[:, :, span]) for span in self.spans(x.shape[2])]
        return torch.cat([parts[0], *(part[:, :, self.overlap :] for part in parts[1:])], dim=2)


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Square tiles of `size` pixels (or latent positions); neighbors fade linearly into each other
    over the `overlap` that they share. Frames no larger than a tile are run whole.
    """

    size: int
    """Side of a tile."""
    overlap: int
    """What neighbors share."""

    def run(self, step: Run, x: Tensor) -> Tensor:
        """`step` of every tile of `x` (b c t h w), blended."""
        height, width = x.shape[-2:]
        if max(height, width) <= self.size:
            return step(x)
        whole = torch.empty(0)
        for row in self._spans(height):
            for column in self._spans(width):
                tile = x[..., row, column]
                y = step(tile)
                scale = Fraction(y.shape[-1], tile.shape[-1])
                if not whole.numel():
                    whole = y.new_zeros(*y.shape[:3], int(height * scale), int(width * scale))
                rows, columns = _scaled(row, scale), _scaled(column, scale)
                weight = self._weights(row, height, scale)[:, None]
                weight = weight * self._weights(column, width, scale)
                whole[..., rows, columns] += y * weight.to(y)
        return whole

    def _spans(self, total: int) -> list[slice]:
        starts = range(0, max(total - self.overlap, 1), self.size - self.overlap)
        return [slice(start, min(start + self.size, total)) for start in starts]

    def _weights(self, span: slice, total: int, scale: Fraction) -> Tensor:
        """A tile's share at each of its outputs along one axis; all tiles' shares sum to 1."""
        weights = torch.ones(int((span.stop - span.start) * scale))
        fade = int(self.overlap * scale)
        rise = (torch.arange(fade) + 0.5) / fade
        if span.start > 0:
            weights[:fade] *= rise
        if span.stop < total:
            weights[-fade:] *= rise.flip(0)
        return weights


def _scaled(span: slice, scale: Fraction) -> slice:
    return slice(int(span.start * scale), int(span.stop * scale))
