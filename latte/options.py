"""The options of a transformer whose sizes of the latent come from a cache."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from common.config import Config
from latte.config import PRESETS, LatteConfig


@dataclass(frozen=True, kw_only=True)
class LatteOptions(Config):
    """The transformer; the sizes of the latent come from the cache."""

    size: Literal["S", "B", "L", "XL", "custom"] = "XL"
    """One of the paper's sizes, or custom: then give hidden_size, depth and num_heads."""
    hidden_size: Annotated[int | None, Ge(1)] = None
    """Width of a token (custom size)."""
    depth: Annotated[int | None, Ge(1)] = None
    """Blocks in all (custom size)."""
    num_heads: Annotated[int | None, Ge(1)] = None
    """Attention heads per block (custom size)."""
    patch_size: Annotated[int, Ge(1)] = 2
    """Side of the square patch that becomes one token, in latent pixels: 2, 4 or 8 in the paper."""
    variant: Literal[1, 2, 3, 4] = 1
    """Where attention is spatial and where temporal, numbered as in the paper: 1 blocks take turns;
    2 all spatial blocks first; 3 both in every block; 4 half of every block's heads each."""
    learn_sigma: bool | None = None
    """Also predict the variance of DDPM's steps; null: in a diffusion yes, in a flow no."""
    class_conditional: bool = False
    """Condition on the labels of the cache; needed for classifier-free guidance."""
    class_dropout: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of training clips whose label is dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = (self.hidden_size, self.depth, self.num_heads)
        if (self.size == "custom") != all(value is not None for value in own) or (
            self.size != "custom" and any(value is not None for value in own)
        ):
            raise ValueError(
                f"size={self.size} with hidden_size, depth, num_heads = {own}: give all three with "
                "size=custom, none with a named size"
            )

    def build(
        self, latent_shape: tuple[int, int, int, int], classes: int, *, flow: bool
    ) -> LatteConfig:
        """The model's config for latents of shape (c, t, h, w), some classes, and a process.

        Raises:
            ValueError: a flow with a variance, or a size that is out of range.
        """
        own = {"hidden_size": self.hidden_size, "depth": self.depth, "num_heads": self.num_heads}
        c, t, h, w = latent_shape
        if flow and self.learn_sigma:
            raise ValueError("model.learn_sigma=true: a flow has no variance; leave it out")
        return LatteConfig(
            in_channels=c,
            num_frames=t,
            height=h,
            width=w,
            patch_size=self.patch_size,
            variant=self.variant,
            num_classes=classes if self.class_conditional else None,
            class_dropout=self.class_dropout,
            learn_sigma=not flow if self.learn_sigma is None else self.learn_sigma,
            **(own if self.size == "custom" else PRESETS[self.size]),  # type: ignore[arg-type]
        )
