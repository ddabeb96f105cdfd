"""C3D fine-tuned on UCF-101, with TGANv2's preprocessing: what the video Inception Score uses."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.conv3d import Conv3d
from common.weights import check_state
from eval.features.preprocess import check_video

FRAMES, SIZE = 16, 112
CROP = slice(8, 120)  # rows and columns of the 128 x 171 mean video
CONVS = {  # inputs, outputs
    "conv1a": (3, 64),
    "conv2a": (64, 128),
    "conv3a": (128, 256),
    "conv3b": (256, 256),
    "conv4a": (256, 512),
    "conv4b": (512, 512),
    "conv5a": (512, 512),
    "conv5b": (512, 512),
}
POOLED = {"conv1a": (1, 2, 2), "conv2a": 2, "conv3b": 2, "conv4b": 2, "conv5b": 2}
LINEARS = {"fc6": (512 * 4 * 4, 4096), "fc7": (4096, 4096), "fc8": (4096, 101)}


class C3D(nn.Module):
    """C3D of 101 classes, 78.4 M parameters, on raw videos: preprocessing is part of it.

    In eval mode from the start. Weights come from `load_chainer`.

    Source:
        Tran et al. 2015; Saito et al. 2020 (TGANv2).
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, (inputs, outputs) in CONVS.items():
            self.add_module(name, Conv3d(inputs, outputs, 3, padding=1))
        for name, (inputs, outputs) in LINEARS.items():
            self.add_module(name, nn.Linear(inputs, outputs))
        self.register_buffer("mean", torch.zeros(3, FRAMES, SIZE, SIZE))  # BGR, 0 to 255
        self.eval()

    def forward(self, video: Float[Tensor, "b 3 16 h w"]) -> Float[Tensor, "b 101"]:
        """Class logits of UCF-101 (alphabetical classes).

        Args:
            video: RGB in [-1, 1], 16 frames of any size. A video VAE's 17 generated frames lose
                frame 0 first.

        Raises:
            ValueError: another number of frames, layout or range.
        """
        x = self.preprocess(video)  # b 3 16 112 112
        for name in CONVS:
            x = F.relu(self.get_submodule(name)(x))
            if name in POOLED:
                x = F.max_pool3d(x, POOLED[name], ceil_mode=True)
        x = rearrange(x, "b c t h w -> b (c t h w)")  # b 8192: t is 1, h and w are 4
        x = F.relu(self.get_submodule("fc6")(x))
        x = F.relu(self.get_submodule("fc7")(x))
        return self.get_submodule("fc8")(x)

    def probabilities(self, video: Float[Tensor, "b 3 16 h w"]) -> Float[Tensor, "b 101"]:
        """Softmax of the logits."""
        return self(video).softmax(dim=1)

    def preprocess(self, video: Float[Tensor, "b 3 16 h w"]) -> Float[Tensor, "b 3 16 112 112"]:
        """TGANv2's input: times 128, BGR, stretched to 112 (aligned corners), + 128 - mean."""
        check_video(video)
        if video.shape[2] != FRAMES:
            raise ValueError(
                f"{video.shape[2]} frames, but C3D takes {FRAMES}. "
                "Drop frame 0 of 17 generated ones."
            )
        bgr = rearrange(128 * video.flip(1), "b c t h w -> (b t) c h w")
        if bgr.shape[-2:] != (SIZE, SIZE):
            bgr = F.interpolate(bgr, (SIZE, SIZE), mode="bilinear", align_corners=True)
        return rearrange(bgr, "(b t) c h w -> b c t h w", t=FRAMES) + (128 - self.mean)


def load_chainer(weights: str | Path, mean: str | Path) -> C3D:
    """C3D from TGANv2's files.

    Args:
        weights: `conv3d_deepnetA_ucf.npz`, arrays `conv1a/W`, `conv1a/b`, ..., `fc8/b`.
        mean: `mean2.npz`, array `mean` of 3 x 16 x 128 x 171 (BGR, 0 to 255).

    Raises:
        ValueError: a file is missing, damaged, or holds other arrays.
    """
    with torch.device("meta"):
        model = C3D()
    state = {}
    for key, value in _read_npz(weights).items():
        layer, _, kind = key.partition("/")
        if layer in CONVS or layer in LINEARS:
            name = f"{layer}.{'weight' if kind == 'W' else 'bias'}"
            state[name] = torch.from_numpy(value).float()
    average = _read_npz(mean).get("mean", np.zeros(0))
    if average.size != 3 * FRAMES * 128 * 171:
        raise ValueError(f"{mean}: needs an array 'mean' of 3 x 16 x 128 x 171. Fetch it again.")
    average = average.reshape(3, FRAMES, 128, 171)[:, :, CROP, CROP]
    state["mean"] = torch.from_numpy(np.ascontiguousarray(average)).float()
    check_state(state, model.state_dict(), f"{weights}: not C3D's weights for UCF-101")
    model.load_state_dict(state, assign=True)
    return model.eval()


class ScriptedC3D(nn.Module):
    """StyleGAN-V's TorchScript program `c3d_ucf101.pt`, on videos in [-1, 1].

    The program preprocesses by itself and takes 0 to 255, as StyleGAN-V feeds it.

    Args:
        path: the file.

    Raises:
        ValueError: not a TorchScript program.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.network = load_script(path)

    def probabilities(self, video: Float[Tensor, "b 3 16 h w"]) -> Float[Tensor, "b 101"]:
        """Class probabilities.

        Raises:
            ValueError: another layout or range.
        """
        check_video(video)
        return self.network(((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))


def load_script(path: str | Path) -> torch.jit.ScriptModule:
    """A TorchScript program in eval mode, on the CPU.

    Raises:
        ValueError: missing, or not TorchScript.
    """
    try:
        with warnings.catch_warnings():  # the published files exist in this format only
            warnings.filterwarnings("ignore", ".*torch.jit.load", DeprecationWarning)
            return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: not a readable TorchScript program ({reason})") from None


def _read_npz(path: str | Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error}). Fetch it again.") from None
