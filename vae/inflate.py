"""Start a video VAE from an image VAE (supplement 2.2, Weight Initialization, Eq. 3 and 4).

Each branch becomes the image VAE: its weights stand block-diagonally, the blocks across branches
are zero. 2D kernels become 3D ones at the temporal tap that reads the frame itself (center
initialization), temporal downsampling inherits the last frame of each pair (Eq. 3), and temporal
upsampling repeats frames (Eq. 4). So at the start every keyframe of the video VAE's reconstruction
is the image VAE's reconstruction of that frame, and every other frame of a group is that of the
group's last frame.

With one branch, in a baseline, this is the regular initialization that the paper argues against:
the image VAE has as many latent channels as the video VAE, and every frame of a group starts as
the group's last frame.
"""

import torch
from torch import Tensor, nn

from vae.blocks import RMSNorm
from vae.config import VAEConfig
from vae.convs import TemporalConv
from vae.image_vae import ImageVAE
from vae.model import VideoVAE
from vae.resample import Downsample, Upsample


@torch.no_grad()
def inflate(image_vae: ImageVAE, config: VAEConfig) -> VideoVAE:
    """The video VAE of `config` whose branches begin as `image_vae`, on the same device.

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
        if isinstance(module, RMSNorm):
            module.gain.copy_(image[f"{name}.gain"].repeat(config.branches))
        elif isinstance(module, Downsample | Upsample) and module.temporal is not None:
            _temporal_identity(module.temporal)
        elif isinstance(module, nn.Conv2d | TemporalConv):
            branches, source = _branches(name, config)
            if f"{source}.weight" in image:  # not so inside a temporal resampling
                _inflate(module, image[f"{source}.weight"], image[f"{source}.bias"], branches)
    return model


def _branches(name: str, config: VAEConfig) -> tuple[tuple[int, ...], str]:
    """Which branches the outputs of convolution `name` belong to, and its image VAE's name."""
    parent, _, last = name.rpartition(".")
    if last in ("keyframe", "motion"):
        return (0,) if last == "keyframe" else (1,), parent
    return tuple(range(config.branches)), name


def _inflate(
    conv: nn.Conv2d | TemporalConv, weight: Tensor, bias: Tensor, branches: tuple[int, ...]
) -> None:
    """A copy for each of the branches, at its place on the diagonal."""
    o, i = weight.shape[:2]
    target = conv.weight
    target.zero_()
    if isinstance(conv, TemporalConv):
        target = target[:, :, conv.center_tap]
    pairs = target.shape[1] // i  # RGB is no pair of branches, nor is a group's input: 1
    for row, branch in enumerate(branches):
        column = branch * i if pairs > 1 else 0
        target[row * o : (row + 1) * o, column : column + i] = weight
    conv.bias.copy_(bias.repeat(len(branches)))  # type: ignore[union-attr]


def _temporal_identity(conv: nn.Conv3d) -> None:
    """Eq. 3: the last frame of each pair is kept; Eq. 4: each frame is made twice."""
    tap = conv.center_tap if isinstance(conv, TemporalConv) else -1
    conv.weight.zero_()
    conv.bias.zero_()  # type: ignore[union-attr]
    for half in conv.weight.split(conv.in_channels):  # one for downsampling, two for upsampling
        half[:, :, tap, 0, 0].copy_(torch.eye(conv.in_channels))
