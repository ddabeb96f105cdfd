"""The transformer's parts: attention along one axis, the adaLN-Zero block and the final layer.

Tokens are `b t n d` throughout: b clips, t frames, n patches of a frame, d features. The condition
is `b k d` with k = t, or k = 1 for one condition shared by all frames: its modulation is then
computed once per clip rather than once per frame or patch.
"""

from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from timm.layers.activations import GELUTanh
from timm.layers.mlp import Mlp
from torch import Tensor, nn

Axis = Literal["space", "time"]

_SPLIT = {
    "space": "b t n (k h d) -> k (b t) h n d",
    "time": "b t n (k h d) -> k (b n) h t d",
}
_MERGE = {
    "space": "(b t) h n d -> b t n (h d)",
    "time": "(b n) h t d -> b t n (h d)",
}


class Attention(nn.Module):
    """Self-attention along one axis: of a frame's patches, or of a patch's frames."""

    def __init__(self, hidden_size: int, num_heads: int, axis: Axis):
        super().__init__()
        self.num_heads = num_heads
        self.axis = axis
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t n d"]:
        qkv = rearrange(self.qkv(x), _SPLIT[self.axis], k=3, h=self.num_heads)
        y = F.scaled_dot_product_attention(*qkv)
        return self.proj(rearrange(y, _MERGE[self.axis], b=len(x)))


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition.

    Source: adaLN-Zero, Peebles and Xie 2023, section 3.2; Latte, Ma et al. 2024, section 3.3.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, axis: Axis):
        super().__init__()
        self.norm1 = _norm(hidden_size)
        self.attn = Attention(hidden_size, num_heads, axis)
        self.norm2 = _norm(hidden_size)
        self.mlp = Mlp(
            hidden_size,
            hidden_features=int(hidden_size * mlp_ratio),
            act_layer=GELUTanh,
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(
        self, x: Float[Tensor, "b t n d"], cond: Float[Tensor, "b k d"]
    ) -> Float[Tensor, "b t n d"]:
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
        shift, scale = self.adaLN_modulation(cond)[:, :, None].chunk(2, dim=-1)  # 2 of b k 1 d
        return self.linear(_modulate(self.norm_final(x), shift, scale))


def _norm(hidden_size: int) -> nn.LayerNorm:
    return nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)


def _modulate(
    x: Float[Tensor, "b t n d"], shift: Float[Tensor, "b k 1 d"], scale: Float[Tensor, "b k 1 d"]
) -> Float[Tensor, "b t n d"]:
    return x * (1 + scale) + shift
