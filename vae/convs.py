"""What joins frames: group causal and causal convolution, the keyframe-based (KTC) unit.

Inside the VAE a chunk of video is one tensor `(b t) c h w`, channels-last, so that every spatial
operation is a plain 2D one over all frames. Channels are `[keyframe branch | motion branch]`, or
those of the only branch. How frames belong together is described by `Chunk`.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vae.config import VAEConfig

Cache = dict[str, Tensor]


@dataclass
class Chunk:
    """Which frames a tensor `(b t) c h w` holds, and what they need from the chunk before.

    A video is one image frame, then groups of frames. A chunk is a run of whole groups; the first
    chunk starts with the image frame.
    """

    batch: int
    """b of `(b t)`."""
    image: bool
    """Whether the chunk starts with the image frame."""
    past: Cache
    """What each convolution over time keeps of the chunk before."""
    carry: Cache = field(default_factory=dict)
    """The same for the next chunk, filled by the convolutions."""

    def starts(self, frames: int, group: int, device: torch.device) -> Tensor:
        """Boolean (t,): the image frame and the first frame of every group."""
        position = torch.arange(frames, device=device) - int(self.image)
        return (position < 0) | (position % group == 0)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(b t) c h w` -> the image frame (b, 1 or 0, h, w, c) and the frames of the groups."""
        x = rearrange(x, "(b t) c h w -> b t h w c", b=self.batch)
        return x[:, : int(self.image)], x[:, int(self.image) :]

    def merge(self, image: Tensor, groups: Tensor) -> Tensor:
        """The inverse of `split`."""
        return rearrange(torch.cat([image, groups], dim=1), "b t h w c -> (b t) c h w")


class Cached:
    """A layer that keeps something of a chunk for the next one."""

    name: str = ""
    """Its key in the cache, which the model sets."""


class TemporalConv(Cached, nn.Conv3d):
    """Convolution over three frames, causal or group causal (GCConv; paper, Sec. 3.3).

    Group causal: a frame of a group sees its neighbours within the group in both directions and
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
    def own(self) -> int:
        """The temporal tap that reads the frame itself."""
        return 2 if self.causal else 1

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:  # type: ignore[override]
        y = F.conv2d(x, self.weight[:, :, self.own], self.bias, padding=self.margin)
        self.add_neighbours(y, x, chunk)
        return y

    def add_neighbours(self, y: Tensor, x: Tensor, chunk: Chunk) -> None:
        """Add to `y`, the own taps' output, what the frames of `x` give to other frames."""
        y = rearrange(y, "(b t) c h w -> b t h w c", b=chunk.batch)  # a view
        self._add_earlier(y, x, chunk)
        if not self.causal and self.group > 1:
            _, groups = chunk.split(x)
            groups = rearrange(groups, "b (n g) h w c -> b n g h w c", g=self.group)[:, :, 1:]
            frames = rearrange(groups, "b n g h w c -> (b n g) c h w")
            later = F.conv2d(frames, self.weight[:, :, 2], padding=self.margin)
            later = rearrange(later, "(b n g) c h w -> b n g h w c", b=len(y), g=self.group - 1)
            y[:, int(chunk.image) :].unflatten(1, (-1, self.group))[:, :, :-1] += later

    def _add_earlier(self, y: Tensor, x: Tensor, chunk: Chunk) -> None:
        """The taps before the own one: to the frames after those that they read."""
        b, t = y.shape[:2]
        taps = rearrange(self.weight[:, :, : self.own], "o i k h w -> (k o) i h w")
        gives = F.conv2d(x, taps, padding=self.margin)
        gives = rearrange(gives, "(b t) (k c) h w -> k b t h w c", b=b, k=self.own)
        past = chunk.past.get(self.name)  # b own h w c: what earlier chunks give to this one
        if past is None and chunk.image and not self.causal:
            past = gives[0, :, :1]  # the image frame stands for the frame before it
        carry = y.new_zeros(b, self.own, *y.shape[2:])
        if past is not None:
            y[:, : self.own] += past[:, :t]
            carry[:, : max(self.own - t, 0)] += past[:, t:]
        for tap, give in enumerate(gives):
            shift = self.own - tap
            y[:, shift:] += give[:, :-shift]
            carry[:, max(shift - t, 0) : shift] += give[:, -shift:]
        chunk.carry[self.name] = carry


class KTCConv(nn.Module):
    """Keyframe-based temporal compression unit: Conv2d and TemporalConv side by side on one input.

    Both read the channels of both branches; the Conv2d gives the keyframe branch, the other the
    motion branch.
    """

    def __init__(self, in_channels: int, out_channels: int, *, group: int, causal: bool):
        """`in_channels` of both branches, `out_channels` of one, `group` frames of a group."""
        super().__init__()
        self.keyframe = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.motion = TemporalConv(in_channels, out_channels, group=group, causal=causal)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        keyframe, motion = self.keyframe, self.motion
        weight = torch.cat([keyframe.weight, motion.weight[:, :, motion.own]])
        bias = torch.cat([keyframe.bias, motion.bias])  # type: ignore[list-item]
        y = F.conv2d(x, weight, bias, padding=1)
        motion.add_neighbours(y[:, keyframe.out_channels :], x, chunk)
        return y


class Conv2d(nn.Conv2d):
    """A 2D convolution of every frame on its own, called like a TemporalConv."""

    def forward(self, input: Tensor, chunk: Chunk | None = None) -> Tensor:
        return super().forward(input)


def conv3x3(
    config: VAEConfig, level: int, in_channels: int, out_channels: int
) -> KTCConv | TemporalConv | Conv2d:
    """The 3x3 convolution of a level of `config`; the channels count all branches.

    KTC convolutions where groups have several frames and one dense Conv2d at latent resolution; in
    a video VAE of one branch TemporalConv everywhere; in an image VAE Conv2d.
    """
    group, causal = config.group_sizes[level], config.temporal == "causal"
    if config.is_image or (config.branches == 2 and group == 1):
        return Conv2d(in_channels, out_channels, 3, padding=1)
    if config.branches == 1 or config.branch_convs == "3d3d":
        return TemporalConv(in_channels, out_channels, group=group, causal=causal)
    return KTCConv(in_channels, out_channels // 2, group=group, causal=causal)
