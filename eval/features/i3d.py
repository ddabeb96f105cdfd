"""Inception-I3D: the network whose Kinetics-400 logits the Fréchet Video Distance compares."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from common.conv3d import Conv3d

SIZE = 224  # pixels
MIN_FRAMES = 9  # fewer leave the last average pool, 2 frames deep, nothing to pool

# Channels: 1x1, 3x3 reduce, 3x3, second 3x3 reduce, second 3x3, 1x1 after the pool.
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Zero-pad `b c t h w` as TensorFlow's SAME does: output size = ceil(input / stride)."""
    padding: list[int] = []
    for n, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(k - (n % s or s), 0)
        padding = [total // 2, total - total // 2, *padding]  # F.pad wants the last axis first
    return F.pad(x, padding)


class Pool(nn.Module):
    """Maximum over SAME-padded windows; the zeros never win, since it follows a ReLU."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c t' h' w'`, each axis divided by its stride, rounded up."""
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Unit(nn.Module):
    """SAME convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, eps: float):
        super().__init__()
        self.conv3d = Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t' h' w'`, each axis divided by the stride, rounded up."""
        x = pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(x)))


class Mixed(nn.Module):
    """Inception block: 1x1, two 3x3 branches and a pooled 1x1, concatenated along channels."""

    def __init__(self, inputs: int, channels: tuple[int, ...], eps: float):
        super().__init__()
        one, reduce_a, three_a, reduce_b, three_b, pooled = channels
        self.b0 = Unit(inputs, one, 1, eps=eps)
        self.b1a = Unit(inputs, reduce_a, 1, eps=eps)
        self.b1b = Unit(reduce_a, three_a, 3, eps=eps)
        self.b2a = Unit(inputs, reduce_b, 1, eps=eps)
        self.b2b = Unit(reduce_b, three_b, 3, eps=eps)
        self.pool = Pool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit(inputs, pooled, 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t h w`, c' the sum over the branches."""
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.pool(x))
        return torch.cat(branches, dim=1)


class InceptionI3D(nn.Module):
    """Inception-v1 inflated to 3D, with the key names of the public PyTorch weights.

    12,697,264 parameters; 55.6 GFLOP for 16 frames. In eval mode from the start.

    Args:
        eps: of the batch norms: 1e-3 as trained (TensorFlow, StyleGAN-V), 1e-5 as in the VideoGPT
            port. It changes the features.

    Source:
        Carreira and Zisserman 2017.
    """

    def __init__(self, eps: float = 1e-3):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2, eps=eps)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1, eps=eps)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3, eps=eps)
        for name, (inputs, channels) in MIXED.items():
            self.add_module(name, Mixed(inputs, channels, eps))
        self.pool_frame = Pool((1, 3, 3), (1, 2, 2))
        self.pool_3 = Pool((3, 3, 3), (2, 2, 2))
        self.pool_2 = Pool((2, 2, 2), (2, 2, 2))
        self.logits = nn.ModuleDict({"conv3d": Conv3d(1024, 400, 1)})
        self.eval()

    def forward(self, video: Float[Tensor, "b 3 t 224 224"]) -> Float[Tensor, "b 400"]:
        """Kinetics-400 logits before the softmax, averaged over time.

        Args:
            video: RGB in [-1, 1], at least 9 frames.

        Raises:
            ValueError: another frame size (it would silently give other features), too few frames.
        """
        if video.shape[1] != 3 or tuple(video.shape[3:]) != (SIZE, SIZE):
            raise ValueError(
                f"video {tuple(video.shape)}: I3D needs b 3 t {SIZE} {SIZE}. Resize the frames."
            )
        if video.shape[2] < MIN_FRAMES:
            raise ValueError(f"{video.shape[2]} frames, but I3D needs {MIN_FRAMES} or more")
        x = self.pool_frame(self.Conv3d_1a_7x7(video))  # b 64 t/2 56 56
        x = self.pool_frame(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)))  # b 192 t/2 28 28
        for name in MIXED:
            if name == "Mixed_4b":
                x = self.pool_3(x)  # b 480 t/4 14 14
            elif name == "Mixed_5b":
                x = self.pool_2(x)  # b 832 t/8 7 7
            x = self.get_submodule(name)(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)  # b 1024 t/8-1 1 1
        return self.logits["conv3d"](x).mean(dim=(2, 3, 4))
