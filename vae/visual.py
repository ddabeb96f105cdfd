"""What the supplement's figures show: latent channels (Fig. 10) and unselected frames (Fig. 2)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vae.base import VideoAutoencoder
from vae.config import VAEConfig
from vae.convs import Chunk
from vae.model import VideoVAE


def latent_maps(z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
    """Each feature map, one channel of one latent frame, brought to [-1, 1] (supplement, Eq. 6).

    (F - (max F + min F) / 2) * 2 / (max F - min F). A constant map becomes 0. The first half of the
    channels comes from the keyframe branch, the second from the motion branch.
    """
    low, high = z.amin((-2, -1), keepdim=True), z.amax((-2, -1), keepdim=True)
    span = high - low
    return (z - (high + low) / 2) * 2 / torch.where(span > 0, span, 1)


@torch.no_grad()
def compared(
    model: nn.Module, video: Float[Tensor, "1 3 t h w"]
) -> list[Float[Tensor, "1 3 t h w"]]:
    """The video, its reconstruction, and with two branches the frames that were not selected."""
    assert isinstance(model, VideoAutoencoder)
    z = model.encode(video).mode()
    shown = [video, model.decode(z, size=video.shape[2:])]
    if isinstance(model, VideoVAE) and model.config.branches == 2:
        shown.append(unselected_frames(model.decode_branches(z), model.config))
    return shown


def unselected_frames(
    branches: Float[Tensor, "b 2 3 t h w"], config: VAEConfig
) -> Float[Tensor, "b 3 t h w"]:
    """The RGB that `decode` leaves out (supplement, Fig. 2), from `VideoVAE.decode_branches`.

    Keyframes (the image frame and the first of every group) as the motion branch sees them, the
    other frames as the keyframe branch does.

    Raises:
        ValueError: not two branches.
    """
    if branches.ndim != 6 or branches.shape[1] != 2:
        raise ValueError(
            f"branches of shape {tuple(branches.shape)}: need b 2 3 t h w, from decode_branches of "
            "a video VAE with two branches"
        )
    chunk = Chunk(batch_size=branches.shape[0], image=True, past={})
    key = chunk.starts(branches.shape[3], config.temporal_ratio, branches.device)
    return torch.where(rearrange(key, "t -> t 1 1"), branches[:, 1], branches[:, 0])
