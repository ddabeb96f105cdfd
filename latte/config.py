"""The sizes of a Latte model, checked once, here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MultipleOf

from common.config import Config

PRESETS: dict[str, dict[str, int]] = {
    "S": {"depth": 12, "hidden_size": 384, "num_heads": 6},
    "B": {"depth": 12, "hidden_size": 768, "num_heads": 12},
    "L": {"depth": 24, "hidden_size": 1024, "num_heads": 16},
    "XL": {"depth": 28, "hidden_size": 1152, "num_heads": 16},
}
"""The paper's sizes; `LatteConfig.preset("S", ...)` fills them in."""


@dataclass(frozen=True, kw_only=True)
class LatteConfig(Config):
    """Architecture of Latte. The transformer defaults to XL/2; sizes are those of the latent."""

    in_channels: Annotated[int, Ge(1)]
    """Channels of the latent."""
    num_frames: Annotated[int, Ge(1)]
    """Latent frames of a clip; images of joint training come on top."""
    height: Annotated[int, Ge(1)]
    """Rows of the latent; a multiple of patch_size."""
    width: Annotated[int, Ge(1)]
    """Columns of the latent; a multiple of patch_size."""
    patch_size: Annotated[int, Ge(1)] = 2
    """Side of the square patch that becomes one token, in latent pixels."""
    hidden_size: Annotated[int, Ge(1), MultipleOf(4)] = 1152
    """Width of a token; a multiple of num_heads and of 4."""
    depth: Annotated[int, Ge(1)] = 28
    """Blocks in all; variants 1 and 2: half of them spatial, half temporal."""
    num_heads: Annotated[int, Ge(1)] = 16
    """Attention heads per block."""
    mlp_ratio: Annotated[float, Gt(0)] = 4.0
    """Hidden width of the MLP as a multiple of hidden_size."""
    variant: Literal[1, 2, 3, 4] = 1
    """Where attention is spatial and where temporal, numbered as in the paper: 1 blocks take turns
    (as in the released models); 2 all spatial blocks, then all temporal; 3 both attentions after
    each other in every block, which is larger by 4 hidden_size^2 weights; 4 half of every block's
    heads spatial, half temporal."""
    num_classes: Annotated[int | None, Ge(1)] = None
    """Classes of a conditional model, labeled 0 .. num_classes - 1; null: unconditional."""
    class_dropout: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of training rows whose labels become the null class; conditional models only."""
    learn_sigma: bool = True
    """Also predict the variance: the output has 2 * in_channels channels instead of in_channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("height", "width"):
            size, patch = getattr(self, name), self.patch_size
            _require(size % patch == 0, name, size, f"must be a multiple of patch_size={patch}")
        _require(
            self.hidden_size % self.num_heads == 0,
            "hidden_size",
            self.hidden_size,
            f"must be a multiple of num_heads={self.num_heads}",
        )
        _require(
            self.depth % 2 == 0 or self.variant in (3, 4),
            "depth",
            self.depth,
            f"must be even: in variant {self.variant} half of the blocks are spatial, "
            "half temporal",
        )
        _require(
            self.num_heads % 2 == 0 or self.variant != 4,
            "num_heads",
            self.num_heads,
            "must be even: in variant 4 half of the heads are spatial, half temporal",
        )

    @classmethod
    def preset(cls, name: str, **fields: object) -> "LatteConfig":
        """A size of the paper, S, B, L or XL, with all other fields given by the caller.

        Raises:
            ValueError: an unknown name, or a field that is out of range.
        """
        if name not in PRESETS:
            raise ValueError(f"Latte preset {name!r} is unknown. Use one of {', '.join(PRESETS)}.")
        return cls(**(PRESETS[name] | fields))  # type: ignore[arg-type]

    @property
    def null_label(self) -> int:
        """The label that stands for no class, the one after the last class.

        Raises:
            ValueError: the model is unconditional.
        """
        if self.num_classes is None:
            raise ValueError("LatteConfig: an unconditional model has no null label.")
        return self.num_classes

    @property
    def out_channels(self) -> int:
        """Channels of the model's output."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a frame."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def axes(self) -> tuple[Literal["space", "time", "both", "split"], ...]:
        """What each block attends to, first block first."""
        if self.variant == 1:
            return ("space", "time") * (self.depth // 2)
        if self.variant == 2:
            return ("space",) * (self.depth // 2) + ("time",) * (self.depth // 2)
        return ("both" if self.variant == 3 else "split",) * self.depth


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise ValueError(f"LatteConfig: {name}={value} {rule}.")
