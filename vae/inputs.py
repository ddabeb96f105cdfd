"""What goes into a VAE: what is refused, and padding to sizes that it can divide."""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vae.config import LatentConfig, Size

PIXEL_LIMIT = 2.0
"""Largest magnitude of a pixel that is taken. Bicubic resizing of pixels in [-1, 1] overshoots to
1.89 at most (1.375 along each axis); pixels in 0..255 or of other scales are far beyond."""


def check_video(x: Tensor) -> None:
    """Refuse what is no `b 3 t h w` float tensor; says nothing about sizes and values."""
    _check_tensor("video", x, channels=3, need="b 3 t h w, float in [-1, 1], not empty")


def check_latent(z: Tensor, config: LatentConfig) -> None:
    """Refuse what is no `b z t h w` float tensor of this config's latent channels."""
    _check_tensor("latent", z, config.z_dim, f"b {config.z_dim} t h w, float, not empty")


def check_size(x: Tensor, config: LatentConfig) -> None:
    """Refuse frame counts and sizes that the VAE cannot divide, naming the nearest it can."""
    try:
        config.latent_shape(*x.shape[2:])
    except ValueError as error:
        raise ValueError(f"{error} Or give pad=True, which pads and crops back.") from None


def check_device(x: Tensor, weights: Tensor) -> None:
    """Refuse a tensor on another device than the model's."""
    if x.device != weights.device:
        raise ValueError(
            f"the input is on {x.device}, but the model is on {weights.device}: move one of them "
            f"with .to({str(x.device)!r}) or .to({str(weights.device)!r})"
        )


def check_pixels(x: Tensor) -> None:
    """Refuse NaN, infinities, and values beyond `PIXEL_LIMIT`, as `_check_range` does."""
    _check_range(
        "video",
        x,
        PIXEL_LIMIT,
        f"need finite values in [-1, 1] (up to {PIXEL_LIMIT:g} in magnitude is taken). "
        "Bring 0..255 there with x / 127.5 - 1",
    )


def check_finite(z: Tensor) -> None:
    """Refuse latents with NaN or infinities, as `_check_range` does."""
    _check_range("latent", z, torch.finfo(z.dtype).max, "need finite values")


def checked_chunks(
    chunks: Iterable[Tensor], config: LatentConfig, *, latent: bool
) -> Iterator[Tensor]:
    """The chunks of a stream; refuses one that is no run of whole groups, or of another size than
    the first, which holds the image frame too.
    """
    ratio = 1 if latent else config.temporal_ratio
    first = torch.Size()
    for i, x in enumerate(chunks):
        image, frames = int(i == 0), x.shape[2]
        if (frames - image) % ratio:
            low = (frames - image) // ratio * ratio + image
            allowed = " or ".join(str(size) for size in (low, low + ratio) if size > 0)
            raise ValueError(
                f"chunk {i} of the stream has {frames} frames, but it needs "
                f"{'1 + ' * image}{ratio}n. Use {allowed}."
            )
        if i == 0:
            first = x.shape
            if not latent:
                config.latent_shape(1, *x.shape[3:])
        elif x.shape[:2] != first[:2] or x.shape[3:] != first[3:]:
            raise ValueError(
                f"chunk {i} of the stream has shape {tuple(x.shape)}, but chunk 0 had "
                f"{tuple(first)}: only t may change"
            )
        yield x


def check_chunk_groups(chunk_groups: int | None) -> None:
    """Refuse what is no whole number of groups, and one below 1."""
    if chunk_groups is not None and (type(chunk_groups) is not int or chunk_groups < 1):
        raise ValueError(
            f"chunk_groups={chunk_groups!r} must be at least 1, or None to choose by free memory"
        )


def padded_size(size: Sequence[int], config: LatentConfig) -> Size:
    """The smallest allowed frames, height and width that are not below `size`."""
    t, h, w = size
    groups = -(-(t - 1) // config.temporal_ratio)
    side = config.spatial_ratio
    return 1 + groups * config.temporal_ratio, -(-h // side) * side, -(-w // side) * side


def pad(x: Float[Tensor, "b c t h w"], config: LatentConfig) -> Float[Tensor, "b c t2 h2 w2"]:
    """Repeat the last frame, the bottom row and the right column up to `padded_size`."""
    t, h, w = padded_size(x.shape[2:], config)
    if (t, h, w) == x.shape[2:]:
        return x
    frames, bottom, right = t - x.shape[2], h - x.shape[3], w - x.shape[4]
    return F.pad(x, (0, right, 0, bottom, 0, frames), mode="replicate")


def check_crop(size: Sequence[int], padded: Size, config: LatentConfig) -> None:
    """Refuse a size (t, h, w) whose video `pad` would not bring to `padded`."""
    if len(size) != 3 or min(size) < 1 or padded_size(size, config) != padded:
        raise ValueError(
            f"size={tuple(size)} (t, h, w) cannot be cropped from a video of {padded}: give the "
            "size of the video that was encoded with pad=True"
        )


def _check_tensor(kind: str, x: Tensor, channels: int, need: str) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{kind} of type {type(x).__name__}: need a tensor {need}")
    if x.ndim != 5 or x.shape[1] != channels or not x.is_floating_point() or not x.numel():
        raise ValueError(f"{kind} of shape {tuple(x.shape)}, {x.dtype}: need {need}")


def _check_range(kind: str, x: Tensor, limit: float, need: str) -> None:
    """Refuse values beyond `limit` in magnitude, and NaN.

    On a CPU a `ValueError`; on a CUDA device a device-side assertion, which the host does not wait
    for. Skipped inside torch.compile and on the meta device, where there are no values.
    """
    if torch.compiler.is_compiling() or x.is_meta:
        return
    low, high = x.detach().aminmax()
    if x.is_cuda:
        torch._assert_async((low >= -limit) & (high <= limit), f"{kind} out of range: {need}")
    elif not -limit <= low.item() <= high.item() <= limit:
        raise ValueError(f"{kind} with values from {low:.4g} to {high:.4g}: {need}")
