"""How the outputs of a convolution's temporal taps are added from frame to frame."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


class Neighbors(NamedTuple):
    """How the frames of a chunk take from one another."""

    batch_size: int
    """Videos."""
    taps: int
    """Taps that read frames before."""
    group: int
    """Frames of a group."""
    image: int
    """1 if the chunk starts with the image frame, else 0."""
    first: bool
    """Whether the first frame also takes what it gives to the second."""

    def split(self, earlier: Tensor) -> Tensor:
        """`(b t) (k c) h w` -> `k b t h w c`: for each tap k what the frames give."""
        return rearrange(earlier, "(b t) (k c) h w -> k b t h w c", b=self.batch_size, k=self.taps)


def add_neighbors(
    y: Tensor, earlier: Tensor, later: Tensor | None, past: Tensor | None, shape: Neighbors
) -> Tensor:
    """What other frames give to each, added to the last channels of `y`, the center tap's output.

    Args:
        y: `(b t) c' h w`; written to, unless this is compiled.
        earlier: `(b t) (k c) h w`, of each tap what the frames give to those after them.
        later: `(b n g) c h w`, g = group - 1, what frames give to those before them.
        past: b k h w c, what earlier chunks give to the first k frames.
    """
    if torch.compiler.is_compiling():
        return _sum(y, earlier, later, past, shape)
    return _Add.apply(y, earlier, later, past, shape)  # type: ignore[return-value]


def _sum(
    y: Tensor, earlier: Tensor, later: Tensor | None, past: Tensor | None, shape: Neighbors
) -> Tensor:
    """Nothing is written in place, so that a compiler makes it part of a neighboring operation."""
    total = rearrange(y, "(b t) c h w -> b t h w c", b=shape.batch_size)
    given, t = shape.split(earlier), total.shape[1]
    parts = [(x, shape.taps - tap) for tap, x in enumerate(given)]
    if shape.first:
        parts.append((given[0, :, :1], 0))
    if past is not None:
        parts.append((past, 0))
    if later is not None:
        groups = rearrange(
            later, "(b n g) c h w -> b n g h w c", b=shape.batch_size, g=shape.group - 1
        )
        parts.append((pad_to(groups, shape.group, axis=2).flatten(1, 2), shape.image))
    before = total.shape[-1] - given.shape[-1]  # channels
    for x, start in parts:  # each padded at once in time and channels
        total = total + F.pad(x, (before, 0, 0, 0, 0, 0, start, t - start - x.shape[1]))
    return rearrange(total, "b t h w c -> (b t) c h w")


def pad_to(x: Tensor, length: int, axis: int = 1) -> Tensor:
    """`x` with zeros behind, of this length along an axis; what is beyond is cut."""
    return F.pad(x, (0, 0) * (x.ndim - 1 - axis) + (0, length - x.shape[axis]))


class _Add(torch.autograd.Function):
    """`_sum` in place. Its gradients are slices; autograd's own would copy all of `y`."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        earlier: Tensor,
        later: Tensor | None,
        past: Tensor | None,
        shape: Neighbors,
    ) -> Tensor:
        given = shape.split(earlier)
        ctx.shape, ctx.given = shape, given.shape
        ctx.has_later, ctx.has_past = later is not None, past is not None
        ctx.mark_dirty(y)
        center = _center_tap(y, shape, given.shape[-1])
        t = center.shape[1]
        if past is not None:
            center[:, : shape.taps].add_(past[:, :t])  # += would copy the slice onto itself
        if shape.first:
            center[:, :1].add_(given[0, :, :1])
        for tap, x in enumerate(given):
            shift = shape.taps - tap
            center[:, shift:].add_(x[:, : max(t - shift, 0)])
        if later is not None:
            _leaders(center, shape).add_(
                rearrange(later, "(b n g) c h w -> b n g h w c", b=len(center), g=shape.group - 1)
            )
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shape, (k, _, frames, *_, c) = ctx.shape, ctx.given
        center = _center_tap(grad, shape, c)
        t = center.shape[1]
        taken = [center[:, k - tap :][:, :frames] for tap in range(k)]
        earlier = torch.stack([pad_to(x, frames) for x in taken], dim=4)  # b t h w k c
        if shape.first:
            earlier[:, :1, ..., 0, :].add_(center[:, :1])
        earlier = rearrange(earlier, "b t h w k c -> (b t) (k c) h w")
        later = past = None
        if ctx.has_later:
            later = rearrange(_leaders(center, shape), "b n g h w c -> (b n g) c h w")
        if ctx.has_past:
            past = pad_to(center[:, :k], k) if t < k else center[:, :k]
        return grad, earlier, later, past, None


def _center_tap(y: Tensor, shape: Neighbors, channels: int) -> Tensor:
    """The last channels, b t h w c; a view."""
    return rearrange(y[:, -channels:], "(b t) c h w -> b t h w c", b=shape.batch_size)


def _leaders(frames: Tensor, shape: Neighbors) -> Tensor:
    """b n g h w c: every frame with one after it in its group; a view."""
    return frames[:, shape.image :].unflatten(1, (-1, shape.group))[:, :, :-1]
