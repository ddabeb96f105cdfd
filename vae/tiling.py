"""Frames larger than memory: overlapping tiles, run one after the other and faded into each other.

A tile does not see what lies beyond its edges. Within reach of an edge that was cut its result is
wrong, so `context` pixels are thrown away there. Convolutions reach a fixed distance; with at least
that much context tiling is exact. Attention at the deepest level sees the whole frame, and in a
tile only the tile: with attention, tiling changes the result, mostly in slow variations of
brightness and color, which the linear fade of `blend` pixels keeps from showing as seams.
docs/architecture.md has measured errors.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from vae.config import VAEConfig
from vae.streaming import Step


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Size and overlap of tiles, in pixels of the video; multiples of the VAE's spatial ratio (8).

    Neighbors overlap by at least 2 * context + blend. A frame that is no larger than a tile is run
    whole.
    """

    height: int = 512
    """Height of a tile."""
    width: int = 512
    """Width of a tile."""
    context: int = 64
    """Pixels that are thrown away at every edge inside the frame."""
    blend: int = 64
    """Pixels over which neighbors fade linearly into each other."""

    def __post_init__(self) -> None:
        if self.context < 0 or self.blend < 0:
            raise ValueError(f"context={self.context}, blend={self.blend}: must not be negative")
        for name in ("height", "width"):
            if getattr(self, name) <= self.overlap:
                raise ValueError(
                    f"{name}={getattr(self, name)} of a tile must be more than its overlap with "
                    f"the next, 2 * context + blend = {self.overlap}"
                )

    @property
    def overlap(self) -> int:
        """Pixels that neighbors share, at least."""
        return 2 * self.context + self.blend

    def check(self, config: VAEConfig) -> None:
        """Refuse sizes that the VAE cannot divide."""
        for name in ("height", "width", "context", "blend"):
            if getattr(self, name) % config.spatial_ratio:
                raise ValueError(
                    f"{name}={getattr(self, name)} of the tiling must be a multiple of "
                    f"{config.spatial_ratio}"
                )


@dataclass(frozen=True)
class TiledStep:
    """A step of a stream (`streaming.Step`) that runs tile by tile; leaves one cache per tile."""

    step: Step
    tiling: Tiling
    scale_in: int
    """Pixels of the video per position of the input: the spatial ratio for latents, else 1."""
    scale_out: int
    """The same for the output."""

    @classmethod
    def wrap(cls, step: Step, tiling: Tiling | None, config: VAEConfig, *, latent: bool) -> Step:
        """`step`, which takes latents or else frames, tile by tile; as it is without a tiling."""
        if tiling is None:
            return step
        tiling.check(config)
        ratio = config.spatial_ratio
        return cls(step, tiling, ratio if latent else 1, 1 if latent else ratio)

    def __call__(
        self, x: Tensor, past: list[Any] | None, last: bool = False
    ) -> tuple[Tensor, list[Any]]:
        tiling, ratio = self.tiling, max(self.scale_in, self.scale_out)
        h, w = (size * self.scale_in for size in x.shape[-2:])
        rows = place(h, tiling.height, tiling, ratio)
        columns = place(w, tiling.width, tiling, ratio)
        left = []

        def step(tile: Tensor) -> Tensor:
            y, kept = self.step(tile, past[len(left)] if past else None, last)
            left.append(kept)
            return y

        return run_tiles(step, x, rows, columns, self.scale_in, self.scale_out), left


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels: from `start`, fading in around one seam and out around the
    next.
    """

    start: int
    size: int
    seams: tuple[float, float]
    """Where half of the result is this tile's and half its neighbor's; infinite at the frame's
    edges."""
    blend: int

    def at(self, scale: int) -> slice:
        """The tile's positions where one position is `scale` pixels."""
        return slice(self.start // scale, (self.start + self.size) // scale)

    def weights(self, scale: int) -> Tensor:
        """The tile's share at each of its positions, float64; the shares of all tiles sum to 1."""
        pixels = self.start + (torch.arange(self.size // scale, dtype=torch.float64) + 0.5) * scale
        fade_in, fade_out = (self._risen(pixels, seam) for seam in self.seams)
        return fade_in - fade_out

    def _risen(self, pixels: Tensor, seam: float) -> Tensor:
        """From 0 to 1 within `blend` pixels around the seam."""
        if math.isinf(seam):
            return torch.full_like(pixels, float(seam < 0))
        return ((pixels - seam) / max(self.blend, 1e-6) + 0.5).clamp(0, 1)


def place(size: int, tile: int, tiling: Tiling, ratio: int) -> list[Span]:
    """As few tiles of `tile` pixels as cover an axis of `size` pixels with enough overlap, evenly
    spread at multiples of `ratio`, the pixels of a latent position.
    """
    if size <= tile:
        return spans([0], size, size, tiling.blend)
    count = math.ceil((size - tiling.overlap) / (tile - tiling.overlap))
    free = (size - tile) // ratio  # of the last tile's start, in positions
    starts = [ratio * round(i * free / (count - 1)) for i in range(count)]
    return spans(starts, tile, size, tiling.blend)


def spans(starts: Sequence[int], tile: int, size: int, blend: int) -> list[Span]:
    """Tiles from these positions on, the last no longer than the `size` pixels of the axis; seams
    are in the middle of what neighbors share.
    """
    seams = [(left + tile + right) / 2 for left, right in pairwise(starts)]
    edges = pairwise([-math.inf, *seams, math.inf])
    return [
        Span(start, min(tile, size - start), around, blend)
        for start, around in zip(starts, edges, strict=True)
    ]


def run_tiles(
    step: Callable[[Tensor], Tensor],
    x: Tensor,
    rows: Sequence[Span],
    columns: Sequence[Span],
    scale_in: int,
    scale_out: int,
) -> Tensor:
    """`step` of every tile of `x` (b c t h w), row by row, faded into each other.

    Spans are in pixels; `scale_in` and `scale_out` are the pixels of a position of `x` and of the
    result, `b c' t' h w`.
    """
    whole = torch.empty(0)
    for row, column in product(rows, columns):
        y = step(x[..., row.at(scale_in), column.at(scale_in)])
        if not whole.numel():
            h, w = (side * scale_in // scale_out for side in x.shape[-2:])
            whole = y.new_zeros(*y.shape[:3], h, w)
        weight = row.weights(scale_out)[:, None] * column.weights(scale_out)
        whole[..., row.at(scale_out), column.at(scale_out)] += y * weight.to(y)
    return whole
