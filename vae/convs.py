"""What joins frames in IV-VAE: group causal convolution in the keyframe-based (KTC) unit,
resampling.

Inside the VAE a chunk of video is one tensor `(b t) c h w`, channels-last, so that every spatial
operation is a plain 2D one over all frames. Channels are `[keyframe branch | motion branch]`. How
frames belong together is described by `Chunk`.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

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
    """What each group causal convolution keeps of the last frame of the chunk before."""
    carry: Cache = field(default_factory=dict)
    """The same for the next chunk, filled by the convolutions."""

    def starts(self, frames: int, group: int, device: torch.device) -> Tensor:
        """Boolean (t,): the image frame and the first frame of every group."""
        position = torch.arange(frames, device=device) - int(self.image)
        return (position < 0) | (position % group == 0)

    def ends(self, frames: int, group: int, device: torch.device) -> Tensor:
        """Boolean (t,): the image frame and the last frame of every group."""
        position = torch.arange(frames, device=device) - int(self.image)
        return (position < 0) | (position % group == group - 1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(b t) c h w` -> the image frame (b, 1 or 0, h, w, c) and the frames of the groups."""
        x = rearrange(x, "(b t) c h w -> b t h w c", b=self.batch)
        return x[:, : int(self.image)], x[:, int(self.image) :]

    def merge(self, image: Tensor, groups: Tensor) -> Tensor:
        """The inverse of `split`."""
        return rearrange(torch.cat([image, groups], dim=1), "b t h w c -> (b t) c h w")


class KTCConv(nn.Module):
    """Keyframe-based temporal compression unit: Conv2d and GCConv3d side by side on the same input.

    Both read the channels of both branches; the Conv2d gives the keyframe branch, the group causal
    convolution (GCConv) the motion branch. A frame of a group sees its neighbours within the group
    in both directions and the last frame of the group before, never a later group: the temporal
    taps (W0, W1, W2) read (x[t-1], x[t], x[t+1]) with x[t+1] = 0 at the end of a group, and the
    image frame reads (x, x, 0).

    All four 2D kernels (keyframe, W0, W1, W2) run as one 2D convolution, and the motion branch is
    the sum of three of its outputs shifted in time. Nothing is copied along time before the
    convolution, and the state to carry from chunk to chunk is W0 * x of the last frame.
    """

    def __init__(self, in_channels: int, out_channels: int, *, group: int):
        """`in_channels` of both branches, `out_channels` of one, `group` frames of a group."""
        super().__init__()
        self.group = group
        self.name = ""  # key in the cache, set by the model
        self.keyframe = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.motion = nn.Conv3d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        taps = rearrange(self.motion.weight, "o i t h w -> (t o) i h w")
        y = F.conv2d(x, torch.cat([self.keyframe.weight, taps]), padding=1)
        y = rearrange(y, "(b t) c h w -> b t h w c", b=chunk.batch)
        keyframe, before, now, after = y.chunk(4, dim=-1)

        first = before[:, :1] if chunk.image else chunk.past[self.name]
        chunk.carry[self.name] = before[:, -1:]
        before = torch.cat([first, before[:, :-1]], dim=1)
        ends = chunk.ends(y.shape[1], self.group, y.device)
        after = after.roll(-1, dims=1).masked_fill(rearrange(ends, "t -> t 1 1 1"), 0)

        y = torch.cat([keyframe, before + now + after], dim=-1)
        y = y + torch.cat([self.keyframe.bias, self.motion.bias])  # type: ignore[list-item]
        return rearrange(y, "b t h w c -> (b t) c h w")


class Conv2d(nn.Conv2d):
    """A 2D convolution of every frame on its own, called like a KTCConv."""

    def forward(self, input: Tensor, chunk: Chunk | None = None) -> Tensor:
        return super().forward(input)


def conv3x3(in_channels: int, out_channels: int, *, branches: int, group: int) -> KTCConv | Conv2d:
    """The 3x3 convolution of a level: KTC where groups have several frames, else one dense Conv2d.

    `in_channels` and `out_channels` count all branches.
    """
    if group == 1:
        return Conv2d(in_channels, out_channels, 3, padding=1)
    return KTCConv(in_channels, out_channels // branches, group=group)


class Downsample(nn.Module):
    """Halve height and width, each branch on its own; with `temporal` also the frames of a group.

    In time the keyframe branch keeps frames 0, 2, ... of a group and the motion branch combines
    pairs (Conv3d 2x1x1, stride 2). The image frame skips the temporal part.
    """

    def __init__(self, channels: int, *, branches: int, temporal: bool):
        super().__init__()
        self.spatial = nn.Conv2d(
            branches * channels, branches * channels, 3, stride=2, groups=branches
        )
        self.temporal = (
            nn.Conv3d(channels, channels, (2, 1, 1), stride=(2, 1, 1)) if temporal else None
        )

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        x = self.spatial(F.pad(x, (0, 1, 0, 1)))
        if self.temporal is None:
            return x
        image, groups = chunk.split(x)
        keyframe, motion = groups.chunk(2, dim=-1)
        pairs = rearrange(motion, "b (t k) h w c -> b t h w (k c)", k=2)
        weight = rearrange(self.temporal.weight, "o i k 1 1 -> o (k i)")
        motion = F.linear(pairs, weight, self.temporal.bias)
        return chunk.merge(image, torch.cat([keyframe[:, ::2], motion], dim=-1))


class Upsample(nn.Module):
    """With `temporal` double the frames of a group; double height and width; halve the channels.

    In time the keyframe branch repeats each frame and the motion branch makes two frames of one
    (Conv3d 1x1x1, C -> 2C). The image frame skips the temporal part.
    """

    def __init__(self, channels: int, *, branches: int, temporal: bool):
        super().__init__()
        self.temporal = nn.Conv3d(channels, 2 * channels, 1) if temporal else None
        self.spatial = nn.Conv2d(
            branches * channels, branches * channels // 2, 3, padding=1, groups=branches
        )

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        if self.temporal is not None:
            image, groups = chunk.split(x)
            keyframe, motion = groups.chunk(2, dim=-1)
            keyframe = repeat(keyframe, "b t h w c -> b (t k) h w c", k=2)
            weight = rearrange(self.temporal.weight, "o i 1 1 1 -> o i")
            motion = F.linear(motion, weight, self.temporal.bias)
            motion = rearrange(motion, "b t h w (k c) -> b (t k) h w c", k=2)
            x = chunk.merge(image, torch.cat([keyframe, motion], dim=-1))
        return self.spatial(F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))
