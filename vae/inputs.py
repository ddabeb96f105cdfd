"""What the VAE refuses: tensors of the wrong shape, type, size, place or range."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vae.config import VAEConfig

PIXEL_LIMIT = 2.0
"""Largest magnitude of a pixel that is taken. Bicubic resizing of pixels in [-1, 1] overshoots to
1.89 at most (1.375 along each axis); pixels in 0..255 or of other scales are far beyond."""


def check_video(x: Tensor) -> None:
    """Refuse what is no `b 3 t h w` float tensor; says nothing about sizes and values."""
    _check_tensor("video", x, channels=3, need="b 3 t h w, float in [-1, 1], not empty")


def check_latent(z: Tensor, config: VAEConfig) -> None:
    """Refuse what is no `b z t h w` float tensor of this config's latent channels."""
    _check_tensor("latent", z, config.z_dim, f"b {config.z_dim} t h w, float, not empty")


def check_size(x: Tensor, config: VAEConfig) -> None:
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
    """Refuse NaN, infinities, and values beyond `PIXEL_LIMIT`. Waits for the device.

    Skipped inside torch.compile, where there are no values yet.
    """
    low, high = _range(x)
    if not -PIXEL_LIMIT <= low <= high <= PIXEL_LIMIT:
        raise ValueError(
            f"video with values from {low:.4g} to {high:.4g}: need finite values in [-1, 1] (up to "
            f"{PIXEL_LIMIT:g} in magnitude is taken). Bring 0..255 there with x / 127.5 - 1"
        )


def check_finite(z: Tensor) -> None:
    """Refuse latents with NaN or infinities. Waits for the device; skipped inside torch.compile."""
    low, high = _range(z)
    if not -float("inf") < low <= high < float("inf"):
        raise ValueError(f"latent with values from {low:.4g} to {high:.4g}: need finite values")


def checked_chunks(
    chunks: Iterable[Tensor], config: VAEConfig, *, latent: bool
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


def _check_tensor(kind: str, x: Tensor, channels: int, need: str) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{kind} of type {type(x).__name__}: need a tensor {need}")
    if x.ndim != 5 or x.shape[1] != channels or not x.is_floating_point() or not x.numel():
        raise ValueError(f"{kind} of shape {tuple(x.shape)}, {x.dtype}: need {need}")


def _range(x: Tensor) -> tuple[float, float]:
    """Smallest and largest value, both NaN if any value is; (0, 0) where there are no values."""
    if torch.compiler.is_compiling() or x.is_meta:
        return 0.0, 0.0
    low, high = torch.stack(x.detach().aminmax()).tolist()  # one transfer
    return low, high
