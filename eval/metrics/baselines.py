"""Reconstructions without any learning: what a video VAE has to beat at its compression.

Both work on `1 + factor * n` frames, where the VAE's first frame stands alone and each following
group of `factor` frames becomes one latent frame. They keep frames `0, factor, 2 * factor, ...`:
the first frame and the last one of each group.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

Video = Float[Tensor, "b c t h w"]


def trilinear_reconstruction(video: Video, *, temporal: int = 4, spatial: int = 8) -> Video:
    """Downsample linearly by `temporal x spatial x spatial`, then upsample linearly.

    Of each kept frame it holds the 3-channel image at `h / spatial x w / spatial`: an antialiased
    (triangle filter) average that excludes detail finer than the new pixels; all other frames are
    dropped. Back in full size, kept frames are enlarged bilinearly and the frames between two
    of them are their linear blend. That is `3 (1 + n) (h / spatial) (w / spatial)` numbers, as
    many as a VAE of 3 latent channels.

    Args:
        video: `1 + temporal * n` frames; height and width divisible by `spatial`.

    Returns:
        A video of the same shape, range and type.

    Raises:
        ValueError: frame count or size do not fit.
    """
    b, _, t, h, w = video.shape
    _check_frames(t, temporal)
    if h % spatial or w % spatial:
        raise ValueError(f"size {h}x{w} is not divisible by {spatial}. Crop or resize the video.")
    size = (h // spatial, w // spatial)
    kept = rearrange(video[:, :, ::temporal], "b c k h w -> (b k) c h w")
    small = F.interpolate(kept, size, mode="bilinear", antialias=True, align_corners=False)
    large = F.interpolate(small, (h, w), mode="bilinear", align_corners=False)
    if t == 1:
        return rearrange(large, "(b k) c h w -> b c k h w", b=b)
    lines = rearrange(large, "(b k) c h w -> b (c h w) k", b=b)
    blended = F.interpolate(lines, t, mode="linear", align_corners=True)  # b (c h w) t
    return rearrange(blended, "b (c h w) t -> b c t h w", h=h, w=w)


def last_frame_reconstruction(video: Video, *, temporal: int = 4) -> Video:
    """Keep the last frame of each group exactly and show it in place of the whole group.

    It keeps frames `0, temporal, 2 * temporal, ...` unchanged, at full size and exact: frame 0
    stands for itself, and the last frame of each group replaces the `temporal - 1` frames before
    it, which are lost. This is what a video VAE inflated from a *perfect* image VAE gives before
    any training (supplement, Eq. 3 and 4), so a trained one should beat it on the
    other frames.

    Args:
        video: `1 + temporal * n` frames.

    Returns:
        A video of the same shape, range and type.

    Raises:
        ValueError: the frame count does not fit.
    """
    t = video.shape[2]
    _check_frames(t, temporal)
    repeated = repeat(video[:, :, ::temporal], "b c k h w -> b c (k r) h w", r=temporal)
    return repeated[:, :, temporal - 1 :]  # frame 0 stands for itself only


def trivial_reconstructions(
    *, temporal: int = 4, spatial: int = 8
) -> dict[str, Callable[[Video], Video]]:
    """Both by name, for a compression of `temporal x spatial x spatial`."""
    return {
        "trilinear": partial(trilinear_reconstruction, temporal=temporal, spatial=spatial),
        "last_frames": partial(last_frame_reconstruction, temporal=temporal),
    }


def _check_frames(t: int, temporal: int) -> None:
    if (t - 1) % temporal:
        lower = t - (t - 1) % temporal
        raise ValueError(
            f"{t} frames, but 1 + {temporal}n are needed. Use {lower} or {lower + temporal}."
        )
