"""Start a video VAE from an image VAE (supplement 2.2, Weight Initialization, Eq. 3 and 4).

Each branch becomes the image VAE: its weights stand block-diagonally, the blocks across branches
are zero. 2D kernels become 3D ones by centre initialisation, temporal downsampling inherits the
last frame of each pair in the motion branch (Eq. 3), and temporal upsampling repeats frames (Eq.
4). So at the start every keyframe of the video VAE's reconstruction is the image VAE's
reconstruction of that frame, and every other frame of a group is that of the group's last frame.
"""

import torch
from torch import Tensor, nn

from vae.blocks import RMSNorm
from vae.config import VAEConfig
from vae.convs import Downsample, KTCConv, Upsample
from vae.model import ImageVAE, VideoVAE


@torch.no_grad()
def inflate(image_vae: ImageVAE, config: VAEConfig) -> VideoVAE:
    """The video VAE of `config` that begins as two copies of `image_vae`, on the same device.

    Raises:
        ValueError: image_vae is not the one `config.image()` describes.
    """
    if image_vae.config != config.image():
        raise ValueError(
            f"the image VAE is {image_vae.config}, but this video VAE starts from {config.image()}"
        )
    model = VideoVAE(config).to(next(image_vae.parameters()).device)
    image = image_vae.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, KTCConv):
            _inflate_ktc(module, image[f"{name}.weight"], image[f"{name}.bias"])
        elif isinstance(module, RMSNorm):
            module.gain.copy_(image[f"{name}.gain"].repeat(2))
        elif isinstance(module, Downsample | Upsample) and module.temporal is not None:
            _temporal_identity(module.temporal)
        elif isinstance(module, nn.Conv2d) and not isinstance(
            model.get_submodule(_parent(name)), KTCConv
        ):
            _inflate_per_frame(module, image[f"{name}.weight"], image[f"{name}.bias"])
    return model


def _inflate_ktc(conv: KTCConv, weight: Tensor, bias: Tensor) -> None:
    """[W | 0] for the keyframe branch, [0 | W] at the middle tap for the motion branch."""
    c = weight.shape[1]
    conv.keyframe.weight.zero_()
    conv.motion.weight.zero_()
    conv.keyframe.weight[:, :c] = weight
    conv.motion.weight[:, -c:, 1] = weight  # RGB is no pair of branches: both read all of it
    for half in (conv.keyframe, conv.motion):
        half.bias.copy_(bias)  # type: ignore[union-attr]


def _inflate_per_frame(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """A copy for each branch: as the two groups of a grouped convolution, else block-diagonal."""
    if conv.groups == 2:
        conv.weight.copy_(torch.cat([weight, weight]))
    else:
        o, c = weight.shape[:2]
        conv.weight.zero_()
        conv.weight[:o, :c] = weight
        conv.weight[o:, c:] = weight
    conv.bias.copy_(bias.repeat(2))  # type: ignore[union-attr]


def _temporal_identity(conv: nn.Conv3d) -> None:
    """Eq. 3: the last frame of each pair is kept; Eq. 4: each frame is made twice."""
    c = conv.in_channels
    conv.weight.zero_()
    conv.bias.zero_()  # type: ignore[union-attr]
    for half in conv.weight.split(c):  # one for downsampling, two for upsampling
        half[:, :, -1, 0, 0].copy_(torch.eye(c))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
