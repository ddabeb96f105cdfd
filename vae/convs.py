"""What joins frames: group causal and causal convolution, the keyframe-based (KTC) unit.

Inside the VAE a chunk of video is one tensor `(b t) c h w`, channels-last, so that every spatial
operation is a plain 2D one over all frames. Channels are `[keyframe branch | motion branch]`, or
those of the only branch. How frames belong together is described by `Chunk`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vae.config import VAEConfig
from vae.neighbors import Neighbors, add_neighbors, pad_to

Cache = dict[str, Tensor]


@dataclass
class Chunk:
    """Which frames a tensor `(b t) c h w` holds, and what they need from the chunk before.

    A video is one image frame, then groups of frames. A chunk is a run of whole groups; the first
    chunk starts with the image frame.
    """

    batch_size: int
    """b of `(b t)`."""
    image: bool
    """Whether the chunk starts with the image frame."""
    past: Cache
    """What each convolution over time keeps of the chunk before."""
    carry: Cache = field(default_factory=dict)
    """The same for the next chunk, filled by the convolutions."""
    last: bool = False
    """Whether the video ends with this chunk: then nothing need be kept for a next one."""

    def starts(self, frames: int, group: int, device: torch.device) -> Tensor:
        """Boolean (t,): the image frame and the first frame of every group."""
        position = torch.arange(frames, device=device) - int(self.image)
        return (position < 0) | (position % group == 0)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(b t) c h w` -> the image frame (b, 1 or 0, h, w, c) and the frames of the groups."""
        x = rearrange(x, "(b t) c h w -> b t h w c", b=self.batch_size)
        image, groups = x.split([int(self.image), x.shape[1] - int(self.image)], dim=1)
        return image, groups

    def merge(self, image: Tensor, groups: Tensor) -> Tensor:
        """The inverse of `split`."""
        return rearrange(torch.cat([image, groups], dim=1), "b t h w c -> (b t) c h w")

    def kept(self, x: Tensor) -> Tensor:
        """The frames that stay when time is halved: the image frame and frames 0, 2, ... of each
        group.
        """
        image, groups = self.split(x)
        return self.merge(image, groups[:, ::2])


class Cached:
    """A layer that keeps something of a chunk for the next one."""

    name: str = ""
    """Its key in the cache, which the model sets."""


NARROW = 3
"""Output channels (RGB) up to which one convolution of all temporal taps, some of them wasted, is
faster than one for each: kernels compute 8 or 16 output channels at once."""


class TemporalConv(Cached, nn.Conv3d):
    """Convolution over three frames, causal or group causal (GCConv; paper, Sec. 3.3).

    Group causal: a frame of a group sees its neighbors within the group in both directions and
    the last frame of the group before, never a later group. The temporal taps (W0, W1, W2) read
    (x[t-1], x[t], x[t+1]) with x[t+1] = 0 at the end of a group; the image frame reads (x, x, 0).

    Causal: the taps read (x[t-2], x[t-1], x[t]), with zeros before the first frame.

    The tap that reads the frame itself runs as a 2D convolution over all frames at once, and so do
    the others, whose outputs are then added to later or earlier frames. So no frame is copied for
    padding, no tap is multiplied with padding in time, and the state to carry from chunk to chunk
    is what the last frames still give to the next one or two.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, group: int, causal: bool, size: int = 3
    ):
        """`group` frames of a group; `size` of the kernel in space, 3 or 1."""
        super().__init__(in_channels, out_channels, (3, size, size))
        self.margin = size // 2  # zeros around a frame
        self.group = group
        self.causal = causal

    @property
    def center_tap(self) -> int:
        """The temporal tap that reads the frame itself; as many taps read frames before it."""
        return 2 if self.causal else 1

    @property
    def looks_ahead(self) -> bool:
        """Whether a frame of a group sees the next one."""
        return not self.causal and self.group > 1

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:  # type: ignore[override]
        """`(b t) c h w` -> `(b t) c' h w`."""
        return self.run(x, chunk)

    def run(self, x: Tensor, chunk: Chunk, companion: nn.Conv2d | None = None) -> Tensor:
        """`(b t) c h w` -> `(b t) c' h w`; what the next chunk needs goes into `chunk.carry`.

        `companion`, a convolution of every frame alone, puts its channels before the output's.
        """
        taps, bias = self._taps(x), self.bias
        assert bias is not None
        if companion is not None:
            assert companion.bias is not None
            weight = torch.cat([as_autocast(companion.weight, x), taps.center])
            taps, bias = taps._replace(center=weight), torch.cat([companion.bias, bias])
        together = self.out_channels <= NARROW
        y, earlier, later = (self._together if together else self._apart)(x, chunk, taps, bias)

        # The image frame stands for the frame before it
        past = chunk.past.get(self.name)  # b taps h w c: what earlier chunks give to this one
        first = past is None and chunk.image and not self.causal
        shape = Neighbors(chunk.batch_size, self.center_tap, self.group, int(chunk.image), first)
        if not chunk.last:
            given = shape.split(earlier)
            chunk.carry[self.name] = self._carry(given[0, :, :1] if first else past, given)
        return add_neighbors(y, earlier, later, past, shape)

    def _together(
        self, x: Tensor, chunk: Chunk, taps: "Taps", bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Center tap, taps before and tap after as one convolution of all frames."""
        n, m = len(taps.center), len(taps.center) + len(taps.before)
        weight = torch.cat([taps.center, taps.before, *([taps.after] if self.looks_ahead else [])])
        y = self._conv(x, weight, F.pad(bias, (0, len(weight) - n)))
        later = self._followers(y[:, m:], chunk) if self.looks_ahead else None
        return y[:, :n].clone(), y[:, n:m], later  # a copy, because the others are added to it

    def _apart(
        self, x: Tensor, chunk: Chunk, taps: "Taps", bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same as one convolution each, only of frames that have a neighbor."""
        y = self._conv(x, taps.center, bias)
        # nothing follows a video's last frame; leaving it out is free where it is a view
        spare = chunk.last and chunk.batch_size == 1 and len(x) > 1
        earlier = self._conv(x[:-1] if spare else x, taps.before)
        if not self.looks_ahead:
            return y, earlier, None
        return y, earlier, self._conv(self._followers(x, chunk), taps.after)

    def _taps(self, x: Tensor) -> "Taps":
        """The kernels of a forward pass: views of the weight, or of one copy under autocast."""
        weight = rearrange(as_autocast(self.weight, x), "o i k h w -> k o h w i")  # as in memory
        k = self.center_tap
        parts = [
            rearrange(part, "k o h w i -> (k o) i h w") for part in weight.split([k, 1, 2 - k])
        ]
        return Taps(*parts)

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, stride=self.stride[1:], padding=self.margin)

    def _followers(self, x: Tensor, chunk: Chunk) -> Tensor:
        """`(b n g) c h w`, g = group - 1: every frame with one before it in its group."""
        groups = rearrange(x, "(b t) c h w -> b t h w c", b=chunk.batch_size)[:, int(chunk.image) :]
        groups = rearrange(groups, "b (n g) h w c -> b n g h w c", g=self.group)
        return rearrange(groups[:, :, 1:], "b n g h w c -> (b n g) c h w")

    def _carry(self, past: Tensor | None, earlier: Tensor) -> Tensor:
        """(b, taps, h, w, c): what this chunk and those before it give to the next one."""
        _, b, t = earlier.shape[:3]
        carry = earlier.new_zeros(b, self.center_tap, *earlier.shape[3:])
        if past is not None:
            carry[:, : max(self.center_tap - t, 0)] += past[:, t:]
        for tap, given in enumerate(earlier):
            shift = self.center_tap - tap
            carry[:, max(shift - t, 0) : shift] += given[:, -shift:]
        return carry


class Taps(NamedTuple):
    """2D kernels of a temporal convolution, `(k o) i h w`, of k taps each."""

    before: Tensor
    """Of the taps that read frames before."""
    center: Tensor
    after: Tensor
    """Empty in a causal convolution."""


def as_autocast(weight: Tensor, x: Tensor) -> Tensor:
    """`weight` in the type in which autocast will run it on `x`, so that it is cast only once.

    Autocast itself remembers the copies of whole weights, not those of their parts.
    """
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if not on or weight.dtype != torch.float32:
        return weight
    return weight.to(torch.get_autocast_dtype(kind))


@torch.no_grad()
def lay_out_weights(model: nn.Module) -> None:
    """Put the weights of convolutions in the order in which kernels read them: temporal taps
    outermost, channels last. Only strides change; shapes, values and what is saved stay.
    """
    for module in model.modules():
        order = "o h w i" if isinstance(module, nn.Conv2d) else "k o h w i"
        axes = "o i h w" if isinstance(module, nn.Conv2d) else "o i k h w"
        # an axis of one has no place in memory
        if isinstance(module, nn.Conv2d | TemporalConv) and 1 not in module.weight.shape:
            weight = rearrange(module.weight, f"{axes} -> {order}").contiguous()
            module.weight.data = rearrange(weight, f"{order} -> {axes}")


class KTCConv(nn.Module):
    """Keyframe-based temporal compression unit: Conv2d and TemporalConv side by side on one input.

    Both read the channels of both branches; the Conv2d gives the keyframe branch, the other the
    motion branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        group: int,
        causal: bool,
        halved_next: bool = False,
    ):
        """`in_channels` of both branches, `out_channels` of one, `group` frames of a group.

        `halved_next` says that time is halved next, so that of the keyframe branch only the frames
        of `Chunk.kept` matter; the others are left at zero.
        """
        super().__init__()
        self.keyframe = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.motion = TemporalConv(in_channels, out_channels, group=group, causal=causal)
        self.halved_next = halved_next

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """`(b t) c h w` -> `(b t) c' h w`, [keyframe branch | motion branch]."""
        if not self.halved_next:
            return self.motion.run(x, chunk, self.keyframe)
        motion = self.motion.run(x, chunk)
        keyframe = F.conv2d(chunk.kept(x), self.keyframe.weight, self.keyframe.bias, padding=1)
        image, groups = chunk.split(keyframe)
        groups = pad_to(rearrange(groups, "b n h w c -> b n 1 h w c"), 2, axis=2)
        groups = rearrange(groups, "b n k h w c -> b (n k) h w c")  # a frame, zeros, a frame, ...
        return torch.cat([chunk.merge(image, groups), motion], dim=1)


class Conv2d(nn.Conv2d):
    """A 2D convolution of every frame on its own, called like a TemporalConv."""

    def forward(self, input: Tensor, chunk: Chunk | None = None) -> Tensor:
        """`(b t) c h w` -> `(b t) c' h' w'`; `chunk` is not used."""
        return super().forward(input)


def conv3x3(
    config: VAEConfig, level: int, in_channels: int, out_channels: int, *, halved_next: bool = False
) -> KTCConv | TemporalConv | Conv2d:
    """The 3x3 convolution of a level of `config`; the channels count all branches.

    KTC convolutions where groups have several frames and one dense Conv2d at latent resolution; in
    a video VAE of one branch TemporalConv everywhere; in an image VAE Conv2d. `halved_next` as for
    `KTCConv`, ignored by the others.
    """
    group, causal = config.group_sizes[level], config.temporal == "causal"
    if config.is_image or (config.branches == 2 and group == 1):
        return Conv2d(in_channels, out_channels, 3, padding=1)
    if config.branches == 1 or config.branch_convs == "3d3d":
        return TemporalConv(in_channels, out_channels, group=group, causal=causal)
    half = out_channels // 2
    return KTCConv(in_channels, half, group=group, causal=causal, halved_next=halved_next)
