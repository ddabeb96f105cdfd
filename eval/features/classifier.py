"""A small video classifier for one's own clips: features and scores where no I3D is at hand."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from common.config import Config, Width
from common.conv3d import Conv3d
from common.pixels import to_float
from common.pretrained import Pretrained
from data.clips.dataset import ClipDataset
from eval.features.preprocess import check_video

GROUPS = 8  # of each group norm; batch statistics would make features depend on the batch


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Config):
    """Shape of a `ClipClassifier`."""

    num_classes: Annotated[int, Ge(2)]
    """Classes to tell apart, at least 2."""
    width: Annotated[Width, Ge(GROUPS), MultipleOf(GROUPS)] = 32
    """Channels of the first stage, a multiple of 8; the features have 4 times as many."""


class Block(nn.Module):
    """Two 3x3x3 convolutions beside a strided 1x1x1 shortcut, each after group norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int, int]):
        super().__init__()
        self.norm_1 = nn.GroupNorm(GROUPS, inputs)
        self.conv_1 = Conv3d(inputs, outputs, 3, stride, padding=1)
        self.norm_2 = nn.GroupNorm(GROUPS, outputs)
        self.conv_2 = Conv3d(outputs, outputs, 3, padding=1)
        self.shortcut = Conv3d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` -> `b c' t' h' w'`, each axis divided by its stride, rounded up."""
        y = self.conv_1(F.silu(self.norm_1(x)))
        return self.shortcut(x) + self.conv_2(F.silu(self.norm_2(y)))


class ClipClassifier(nn.Module, Pretrained):
    """3D-convolutional classifier of clips of any size and length.

    Each clip is processed alone (no batch statistics). `save_pretrained` and `from_pretrained`
    keep weights (safetensors) and configuration together.

    Args:
        config: classes and width.
    """

    config_class = ClassifierConfig

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.stem = Conv3d(3, width, (3, 5, 5), (1, 2, 2), padding=(1, 2, 2))
        self.blocks = nn.Sequential(
            Block(width, width, (1, 2, 2)),
            Block(width, 2 * width, (2, 2, 2)),
            Block(2 * width, 4 * width, (2, 2, 2)),
        )
        self.norm = nn.GroupNorm(GROUPS, 4 * width)
        self.head = nn.Linear(4 * width, config.num_classes)

    def features(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d"]:
        """Pooled activations before the last layer, `d = 4 * width`.

        Args:
            video: RGB in [-1, 1].

        Raises:
            ValueError: another layout, type or range.
        """
        check_video(video)
        x = self.blocks(self.stem(video))  # b d t/4 h/16 w/16
        return reduce(F.silu(self.norm(x)), "b d t h w -> b d", "mean")

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b num_classes"]:
        """Class logits; see `features` for the input."""
        return self.head(self.features(video))


@torch.inference_mode()
def accuracy(model: ClipClassifier, clips: ClipDataset) -> dict[str, Any]:
    """Share of clips recognized, beside that of always saying the most frequent class."""
    device = model.head.weight.device
    labels, predicted = [], []
    for i in tqdm(range(len(clips)), desc="held out", unit="clip"):
        item = clips[(0, i)]
        labels.append(item["label"])
        predicted.append(int(model(to_float(item["video"][None].to(device))).argmax()))
    hits = sum(a == b for a, b in zip(predicted, labels, strict=True))
    return {
        "accuracy": hits / len(labels),
        "chance": torch.tensor(labels).bincount().max().item() / len(labels),
        "clips": len(labels),
    }
