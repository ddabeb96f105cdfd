"""The sizes of a Latte model, checked once, here; and what a training run leaves to its latents."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MultipleOf

from common.config import Config, Width

Axes = Literal["space", "time", "both", "split"]
"""What a block attends to: one axis, both after each other, or each with half of the heads."""
PRESETS: dict[str, dict[str, int]] = {
    "S": {"depth": 12, "hidden_size": 384, "num_heads": 6},
    "B": {"depth": 12, "hidden_size": 768, "num_heads": 12},
    "L": {"depth": 24, "hidden_size": 1024, "num_heads": 16},
    "XL": {"depth": 28, "hidden_size": 1152, "num_heads": 16},
}
"""The paper's sizes; `LatteConfig.preset("S", ...)` fills them in."""


@dataclass(frozen=True, kw_only=True)
class _Transformer(Config):
    """What does not depend on the latents."""

    patch_size: Annotated[int, Ge(1)] = 2
    """Side of the square patch that becomes one token, in latent pixels: 2, 4 or 8 in the paper."""
    mlp_ratio: Annotated[float, Gt(0), Le(1024)] = 4.0
    """Hidden width of the MLP as a multiple of hidden_size."""
    variant: Literal[1, 2, 3, 4] = 1
    """Where attention is spatial and where temporal, numbered as in the paper: 1 blocks take turns
    (as in the released models); 2 all spatial blocks, then all temporal; 3 both attentions after
    each other in every block, which is larger by 4 hidden_size^2 weights; 4 half of every block's
    heads spatial, half temporal."""
    class_dropout: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of training rows whose labels become the null class; conditional models only."""


@dataclass(frozen=True, kw_only=True)
class LatteConfig(_Transformer):
    """Architecture of Latte. The transformer defaults to XL/2; sizes are those of the latent."""

    in_channels: Annotated[int, Ge(1)]
    """Channels of the latent."""
    num_frames: Annotated[int, Ge(1)]
    """Latent frames of a clip; images of joint training come on top."""
    height: Annotated[int, Ge(1)]
    """Rows of the latent; a multiple of patch_size."""
    width: Annotated[int, Ge(1)]
    """Columns of the latent; a multiple of patch_size."""
    hidden_size: Annotated[Width, MultipleOf(4)] = 1152
    """Width of a token; a multiple of num_heads and of 4."""
    depth: Annotated[int, Ge(1), Le(1000)] = 28
    """Blocks in all; variants 1 and 2: half of them spatial, half temporal."""
    num_heads: Annotated[int, Ge(1)] = 16
    """Attention heads per block."""
    num_classes: Annotated[int | None, Ge(1)] = None
    """Classes of a conditional model, labeled 0 .. num_classes - 1; null: unconditional."""
    learn_sigma: bool = True
    """Also predict the variance: the output has 2 * in_channels channels instead of in_channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, divisor in (
            ("height", "patch_size"),
            ("width", "patch_size"),
            ("hidden_size", "num_heads"),
        ):
            if getattr(self, name) % getattr(self, divisor):
                raise ValueError(
                    f"LatteConfig: {name}={getattr(self, name)} must be a multiple of "
                    f"{divisor}={getattr(self, divisor)}."
                )
        if self.depth % 2 and self.variant in (1, 2):
            raise ValueError(
                f"LatteConfig: depth={self.depth} must be even: in variant {self.variant} half of "
                "the blocks are spatial, half temporal."
            )
        if self.num_heads % 2 and self.variant == 4:
            raise ValueError(
                f"LatteConfig: num_heads={self.num_heads} must be even: in variant 4 half of the "
                "heads are spatial, half temporal."
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
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(c, t, h, w) of a clip's latent."""
        return self.in_channels, self.num_frames, self.height, self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a frame."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def axes(self) -> tuple[Axes, ...]:
        """What each block attends to, first block first."""
        if self.variant == 1:
            return ("space", "time") * (self.depth // 2)
        if self.variant == 2:
            return ("space",) * (self.depth // 2) + ("time",) * (self.depth // 2)
        return ("both" if self.variant == 3 else "split",) * self.depth


@dataclass(frozen=True, kw_only=True)
class LatteOptions(_Transformer):
    """The transformer of a training run; the sizes of the latent come from the cache."""

    size: Literal["S", "B", "L", "XL", "custom"] = "XL"
    """One of the paper's sizes, or custom: then give hidden_size, depth and num_heads."""
    hidden_size: Width | None = None
    """Width of a token (custom size)."""
    depth: Annotated[int | None, Ge(1), Le(1000)] = None
    """Blocks in all (custom size)."""
    num_heads: Annotated[int | None, Ge(1)] = None
    """Attention heads per block (custom size)."""
    learn_sigma: bool | None = None
    """Also predict the variance of DDPM's steps; null: in a diffusion yes, in a flow no."""
    class_conditional: bool = False
    """Condition on the labels of the cache; needed for classifier-free guidance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = tuple(self._custom.values())
        if None in given if self.size == "custom" else any(value is not None for value in given):
            raise ValueError(
                f"size={self.size} with hidden_size, depth, num_heads = {given}: give all three "
                "with size=custom, none with a named size"
            )

    def build(
        self, latent_shape: tuple[int, int, int, int], num_classes: int, *, flow: bool
    ) -> LatteConfig:
        """The model's config for latents of shape (c, t, h, w), of some classes, and a process.

        Raises:
            ValueError: a flow with a variance, or a size that is out of range.
        """
        if flow and self.learn_sigma:
            raise ValueError("model.learn_sigma=true: a flow has no variance; leave it out")
        c, t, h, w = latent_shape
        sizes: dict[str, Any] = self._custom if self.size == "custom" else {**PRESETS[self.size]}
        return LatteConfig(
            in_channels=c,
            num_frames=t,
            height=h,
            width=w,
            **{field.name: getattr(self, field.name) for field in fields(_Transformer)},
            **sizes,
            num_classes=num_classes if self.class_conditional else None,
            learn_sigma=not flow if self.learn_sigma is None else self.learn_sigma,
        )

    @property
    def _custom(self) -> dict[str, Any]:
        return {"hidden_size": self.hidden_size, "depth": self.depth, "num_heads": self.num_heads}
