"""Single savings of IV-VAE against the form without: equal results, then the time of each.

    OMP_NUM_THREADS=1 python -m benchmarks.vae_savings

Sizes are those inside a video of 17x64x64. It is processor time that counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from unittest.mock import patch

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor
from torch.testing import assert_close

from benchmarks.shared import seconds_in_turns
from common.cli import main
from vae import convs
from vae.convs import Chunk, KTCConv
from vae.resample import enlarge, shrink


@dataclass(frozen=True, kw_only=True)
class VAESavings:
    """Time single savings."""

    dim: int = 64
    """Channels of one branch at the first level."""
    repeats: int = 9
    """Timed runs of each, taking turns; the median counts."""


Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Saving:
    """One layer without a saving and with it; further calls are alternatives that are not taken."""

    name: str
    calls: tuple[Call, ...]
    compared: Callable[[Tensor], Tensor] = lambda y: y
    """What of the results must be equal."""


@torch.no_grad()
def run(config: VAESavings) -> None:
    """Print one line per saving: milliseconds of each call."""
    torch.manual_seed(0)
    c = config.dim
    for saving in (
        keyframes("keyframes that stay, level 1", 2 * c, frames=17, group=4, side=32),
        keyframes("keyframes that stay, level 2", 4 * c, frames=9, group=2, side=16),
        repeating(c),
        head(c),
        padding(c),
    ):
        expected, *others = (saving.compared(call()) for call in saving.calls)
        for result in others:
            assert_close(result, expected, rtol=1e-3, atol=1e-4)
        seconds = seconds_in_turns(saving.calls, config.repeats)
        print(f"{saving.name}:", *(f"{1000 * median(runs):.1f}" for runs in seconds))


def video(frames: int, c: int, side: int) -> tuple[Tensor, Chunk]:
    """A whole video's feature map `(b t) c h w`, channels-last."""
    x = torch.randn(frames, c, side, side).contiguous(memory_format=torch.channels_last)
    return x, Chunk(batch_size=1, image=True, past={}, last=True)


def keyframes(name: str, c: int, *, frames: int, group: int, side: int) -> Saving:
    """The last convolution before time is halved, on all frames or on those that stay."""
    x, chunk = video(frames, 2 * c, side)
    units = [
        KTCConv(2 * c, c, group=group, causal=False, halved_next=halved) for halved in (False, True)
    ]
    units[1].load_state_dict(units[0].state_dict())
    calls = tuple(lambda unit=unit: unit(x, chunk) for unit in units)
    return Saving(name, calls, compared=chunk.kept)


def repeating(dim: int) -> Saving:
    """Enlarging the keyframe branch after or before its frames are repeated (level 2 to 1)."""
    c = 4 * dim
    (x, chunk), weight, bias = video(9, c, 16), torch.randn(c // 2, c, 3, 3), torch.randn(c // 2)

    def repeated(x: Tensor) -> Tensor:
        image, groups = chunk.split(x)
        return chunk.merge(image, repeat(groups, "b t h w c -> b (t k) h w c", k=2))

    return Saving(
        "frames repeated after the convolution",
        (lambda: enlarge(repeated(x), weight, bias), lambda: repeated(enlarge(x, weight, bias))),
    )


def head(dim: int) -> Saving:
    """The decoder's head: a convolution for each tap, one for all, or two on selected frames."""
    unit, (x, chunk) = KTCConv(2 * dim, 3, group=4, causal=False), video(17, 2 * dim, 64)
    motion = torch.cat([*unit.motion.weight.unbind(2)])  # 9 channels: three taps

    def one_by_one() -> Tensor:
        with patch.object(convs, "NARROW", 0):
            return unit(x, chunk)

    def selected() -> Tensor:
        """Only as much work: nothing is added up."""
        F.conv2d(x[::4], unit.keyframe.weight, padding=1)  # as many as there are keyframes
        return F.conv2d(x, motion, padding=1)[:, :6]

    name = "head in one convolution, and on selected frames"
    calls = one_by_one, lambda: unit(x, chunk), selected
    assert_close(one_by_one(), unit(x, chunk), rtol=1e-3, atol=1e-4)
    return Saving(name, calls, compared=lambda y: y[:0])  # the third is no result


def padding(dim: int) -> Saving:
    """Halving height and width: a padded copy, or padding inside the convolution."""
    x, _ = video(17, 2 * dim, 64)
    weight, bias = torch.randn(2 * dim, dim, 3, 3), torch.randn(2 * dim)

    def padded() -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2, groups=2)

    calls = padded, lambda: shrink(x, weight, bias, groups=2)
    return Saving("padding inside the convolution", calls)


if __name__ == "__main__":
    main(VAESavings, run)
