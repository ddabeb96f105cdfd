"""What training decodes in place of a latent: turned, downsampled, with hidden positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Edits:
    """What a step decodes, and what it compares that with."""

    frames: int
    """Of the clip."""
    ratio: int
    """Pixels per latent position along height and width."""
    turn: tuple[int, float] | None
    """Quarter turns and scale of latent and clip."""
    mask: Bool[Tensor, "t h w"] | None
    """Which latent positions become the token, after turning."""
    down: tuple[int, int] | None
    """Factors of time and space of a second, downsampled pair."""

    def latents(
        self, z: Float[Tensor, "b z t h w"], token: Tensor | None
    ) -> list[tuple[Float[Tensor, "b z t2 h2 w2"], int]]:
        """Latents to decode, each with its number of frames."""
        first = z if self.turn is None else turned(z, *self.turn, unit=1)
        if self.mask is not None:
            assert token is not None
            first = torch.where(self.mask.to(z.device, non_blocking=True), token.to(z), first)
        found = [(first, self.frames)]
        if self.down is not None:
            found.append((pooled(z, *self.down), 1 + (self.frames - 1) // self.down[0]))
        return found

    def videos(self, x: Float[Tensor, "b 3 t h w"]) -> list[Float[Tensor, "b 3 t2 h2 w2"]]:
        """What the decoded latents are compared with."""
        first = x if self.turn is None else turned(x, *self.turn, unit=self.ratio)
        return [first] if self.down is None else [first, pooled(x, *self.down)]


def pooled(x: Float[Tensor, "b c t h w"], time: int, space: int) -> Float[Tensor, "b c t2 h2 w2"]:
    """Averages over `space` x `space` positions, and over `time` frames after the first one.

    Height and width must be multiples of `space`, the frames after the first one of `time`.
    """
    first = F.avg_pool3d(x[:, :, :1], (1, space, space))
    if x.shape[2] == 1:
        return first
    rest = F.avg_pool3d(x[:, :, 1:], (time, space, space))
    return torch.cat([first, rest], dim=2)


def turned(x: Float[Tensor, "b c t h w"], quarters: int, scale: float, *, unit: int) -> Tensor:
    """`x` scaled, antialiased, to whole `unit`s of height and width, then rotated.

    Args:
        quarters: turns by 90 degrees to the left; an odd number swaps height and width.
        scale: above 0, of both sides.
        unit: pixels of a latent position; 1 for latents.

    Returns:
        `b c t h2 w2`.
    """
    b, _, _, h, w = x.shape
    height, width = (unit * side for side in scaled((h // unit, w // unit), scale))
    if (height, width) != (h, w):
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        frames = F.interpolate(frames, (height, width), mode="bilinear", antialias=True)
        x = rearrange(frames, "(b t) c h w -> b c t h w", b=b)
    return torch.rot90(x, quarters, (3, 4))


def scaled(sides: Sequence[int], scale: float) -> tuple[int, int]:
    """Height and width, at least 1, times `scale`."""
    height, width = (max(1, round(side * scale)) for side in sides)
    return height, width
