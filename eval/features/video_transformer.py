"""The vision transformer that VideoMAE and V-JEPA have in common, with the names of both."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

SIZE, FRAMES = 224, 16
EPS = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Attention heads of the published widths: tiny, small, base, large, huge, giant."""


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """Sizes of a transformer, which its weights tell."""

    dim: int
    """Channels of a token, and of the features."""
    depth: int
    """Blocks."""
    hidden: int
    """Channels inside the MLPs."""
    patch: int
    """Pixels along each side of a token's patch."""
    tubelet: int
    """Frames of a token."""

    @property
    def heads(self) -> int:
        """Attention heads."""
        return HEADS[self.dim]

    @property
    def tokens(self) -> int:
        """Tokens of a video, in the order t h w."""
        return FRAMES // self.tubelet * (SIZE // self.patch) ** 2


def shape_of(state: Mapping[str, Tensor]) -> TransformerShape:
    """The shape that a state dict is of; a `KeyError` says what is missing or not published."""
    dim, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
    if dim not in HEADS:
        raise KeyError(f"no published model has {dim} channels")
    return TransformerShape(
        dim=dim,
        depth=sum(key.endswith(".norm1.weight") for key in state),
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        patch=patch,
        tubelet=tubelet,
    )


class Attention(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim)
        self.proj = nn.Linear(shape.dim, shape.dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Attention over the n tokens, without the residual."""
        qkv = rearrange(self.qkv(x), "b n (k h d) -> k b h n d", k=3, h=self.heads)
        y = F.scaled_dot_product_attention(*qkv)
        return self.proj(rearrange(y, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.fc1 = nn.Linear(shape.dim, shape.hidden)
        self.fc2 = nn.Linear(shape.hidden, shape.dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The MLP of each token, without the residual."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and added to its input."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.dim, eps=EPS)
        self.attn = Attention(shape)
        self.norm2 = nn.LayerNorm(shape.dim, eps=EPS)
        self.mlp = MLP(shape)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Attention and MLP over the n tokens, each with its residual."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VideoTransformer(nn.Module):
    """Patches and blocks; a subclass adds positions, and gathers the tokens into one vector."""

    title: str

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.shape = shape
        kernel = (shape.tubelet, shape.patch, shape.patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, shape.dim, kernel, kernel)})
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))

    def tokens(
        self, video: Float[Tensor, "b 3 16 224 224"], positions: Float[Tensor, "... n d"]
    ) -> Float[Tensor, "b n d"]:
        """The tokens that come out of the last block.

        Args:
            video: RGB in [-1, 1].
            positions: added to the patches, in the order t h w.

        Raises:
            ValueError: another number of frames or another size.
        """
        if tuple(video.shape[1:]) != (3, FRAMES, SIZE, SIZE):
            raise ValueError(
                f"video {tuple(video.shape)}: {self.title} needs b 3 {FRAMES} {SIZE} {SIZE}"
            )
        mean, std = (video.new_tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
        x = self.patch_embed["proj"](((video + 1) / 2 - mean) / std)  # b d t h w
        x = rearrange(x, "b d t h w -> b (t h w) d") + positions
        for block in self.blocks:
            x = block(x)
        return x
