"""The transformer's parts: attention in space and time, the adaLN-Zero block, the final layer.

Tokens are `b t n d` throughout: b clips, t frames, n patches of a frame, d features. The condition
is `b k d` with k = t, or k = 1 for one condition shared by all frames: its modulation is then
computed once per clip rather than once per frame or patch.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from timm.layers.activations import GELUTanh
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from latte.config import Axes

Axis = Literal["space", "time"]

_SPLIT = {"space": "b t n (k h d) -> k (b t) h n d", "time": "b t n (k h d) -> k (b n) h t d"}
_MERGE = {"space": "(b t) h n d -> b t n (h d)", "time": "(b n) h t d -> b t n (h d)"}


SHORT = 16
"""Tokens up to which attention is written as products of matrices. Fused kernels work on blocks of
64 or 128 tokens: of five frames they compute mostly padding, keep statistics for the padding too,
and take no more than 65,535 rows."""


def attend(
    q: Float[Tensor, "r h s d"], k: Float[Tensor, "r h s d"], v: Float[Tensor, "r h s d"]
) -> Float[Tensor, "r h s d"]:
    """softmax(q k^T / sqrt(d)) v; short sequences with a float32 softmax, by length alone.

    The scores of a short sequence, s per token and head, are no more than the tokens' own values
    up to s = d.
    """
    if q.shape[-2] > SHORT:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # r h s s
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=wide).to(v.dtype) @ v


class Attention(nn.Module):
    """Self-attention along one axis: of a frame's patches, or of a patch's frames."""

    def __init__(self, hidden_size: int, num_heads: int, axis: Axis):
        super().__init__()
        self.num_heads = num_heads
        self.axis = axis
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t n d"]:
        """Attention along `axis`, without the residual."""
        qkv = rearrange(self.qkv(x), _SPLIT[self.axis], k=3, h=self.num_heads)
        y = attend(*qkv)
        return self.proj(rearrange(y, _MERGE[self.axis], b=len(x)))


class BothAttention(nn.Module):
    """Attention in space, then in time among the first `frames`; images behind them only in space.

    Source: Latte, Ma et al. 2024, section 3.2, variant 3.
    """

    def __init__(self, hidden_size: int, num_heads: int, frames: int):
        super().__init__()
        self.frames = frames
        self.space = Attention(hidden_size, num_heads, "space")
        self.time = Attention(hidden_size, num_heads, "time")

    def forward(self, x: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t n d"]:
        """Attention in space, then in time, without the residual."""
        clip, images = split_images(self.space(x), self.frames)
        return join_images(self.time(clip), images)


class SplitAttention(nn.Module):
    """The first half of the heads attends in space, the second in time; one projection fuses them.

    Images behind the first `frames` are alone in time, where each sees itself.

    Source: Latte, Ma et al. 2024, section 3.2, variant 4. The projection of both halves side by
    side is the sum of one projection of each.
    """

    def __init__(self, hidden_size: int, num_heads: int, frames: int):
        super().__init__()
        self.frames = frames
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t n d"]:
        """Attention in space and in time, without the residual."""
        qkv = rearrange(self.qkv(x), "b t n (k s d) -> s b t n (k d)", k=3, s=2)
        space, time = (rows.contiguous() for rows in qkv)  # b t n (3 d/2) each
        clip, images = split_images(time, self.frames)
        value = images.chunk(3, dim=-1)[2]
        time = join_images(self._attend(clip, "time"), value)
        return self.proj(torch.cat([self._attend(space, "space"), time], dim=-1))

    def _attend(self, qkv: Float[Tensor, "b t n e"], axis: Axis) -> Float[Tensor, "b t n d"]:
        q, k, v = rearrange(qkv, _SPLIT[axis], k=3, h=self.num_heads // 2)
        return rearrange(attend(q, k, v), _MERGE[axis], b=len(qkv))


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition.

    Source: adaLN-Zero, Peebles and Xie 2023, section 3.2; Latte, Ma et al. 2024, section 3.3.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, axes: Axes, frames: int):
        super().__init__()
        self.norm1 = _norm(hidden_size)
        self.attn = _attention(hidden_size, num_heads, axes, frames)
        self.norm2 = _norm(hidden_size)
        self.mlp = Mlp(
            hidden_size, hidden_features=int(hidden_size * mlp_ratio), act_layer=GELUTanh
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(
        self, x: Float[Tensor, "b t n d"], cond: Float[Tensor, "b k d"]
    ) -> Float[Tensor, "b t n d"]:
        """Attention and MLP, each with its residual; k = 1 condition for all frames, or k = t."""
        modulation = self.adaLN_modulation(cond)[:, :, None].chunk(6, dim=-1)  # 6 of b k 1 d
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        x = x + gate * self.attn(_modulate(self.norm1(x), shift, scale))
        return x + mlp_gate * self.mlp(_modulate(self.norm2(x), mlp_shift, mlp_scale))


class FinalLayer(nn.Module):
    """Modulated norm, then each token to the values of its patch."""

    def __init__(self, hidden_size: int, patch_values: int):
        super().__init__()
        self.norm_final = _norm(hidden_size)
        self.linear = nn.Linear(hidden_size, patch_values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(
        self, x: Float[Tensor, "b t n d"], cond: Float[Tensor, "b k d"]
    ) -> Float[Tensor, "b t n v"]:
        """The v values of each token's patch; k = 1 condition for all frames, or k = t."""
        shift, scale = self.adaLN_modulation(cond)[:, :, None].chunk(2, dim=-1)  # 2 of b k 1 d
        return self.linear(_modulate(self.norm_final(x), shift, scale))


def split_images(x: Float[Tensor, "b t n d"], frames: int) -> tuple[Tensor, Tensor]:
    """The clip's `frames`, and the images of joint training behind them (perhaps none)."""
    clip, images = x.split([frames, x.shape[1] - frames], dim=1)
    return clip, images


def join_images(clip: Float[Tensor, "b t n d"], images: Float[Tensor, "b i n d"]) -> Tensor:
    """The inverse of `split_images`."""
    return torch.cat([clip, images], dim=1) if images.shape[1] else clip


def _attention(hidden_size: int, num_heads: int, axes: Axes, frames: int) -> nn.Module:
    if axes == "both":
        return BothAttention(hidden_size, num_heads, frames)
    if axes == "split":
        return SplitAttention(hidden_size, num_heads, frames)
    return Attention(hidden_size, num_heads, axes)


def _norm(hidden_size: int) -> nn.LayerNorm:
    return nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)


def _modulate(
    x: Float[Tensor, "b t n d"], shift: Float[Tensor, "b k 1 d"], scale: Float[Tensor, "b k 1 d"]
) -> Float[Tensor, "b t n d"]:
    return x * (1 + scale) + shift
