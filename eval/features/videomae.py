"""VideoMAE's vision transformer: features that mind motion more than those of I3D.

With the giant model of VideoMAE v2, fine-tuned on Something-Something v2, the distance is the
content-debiased FVD of Ge et al. 2024.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.config import Config
from common.weights import read_state_dict

SIZE, FRAMES = 224, 16
EPS = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Attention heads of the published widths: small, base, large, huge, giant."""


@dataclass(frozen=True, kw_only=True)
class VideoMAEConfig(Config):
    """Shape of the transformer; the defaults are the giant model of VideoMAE v2."""

    dim: Annotated[int, Ge(1)] = 1408
    """Channels of a token, and of the features."""
    depth: Annotated[int, Ge(1)] = 40
    """Blocks."""
    heads: Annotated[int, Ge(1)] = 16
    """Attention heads."""
    hidden: Annotated[int, Ge(1)] = 6144
    """Channels inside the MLPs."""
    patch: Annotated[int, Ge(1)] = 14
    """Pixels along each side of a token's patch."""
    tubelet: Annotated[int, Ge(1)] = 2
    """Frames of a token."""


class Attention(nn.Module):
    """Self-attention over all tokens; queries and values have a bias, keys none."""

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.dim))
        self.v_bias = nn.Parameter(torch.zeros(config.dim))
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Attention over the n tokens, without the residual."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "b n (k h d) -> k b h n d", k=3, h=self.heads)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(y, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The MLP of each token, without the residual."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and added to its input; V-JEPA's are alike."""

    def __init__(self, dim: int, hidden: int, attention: nn.Module):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, hidden)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Attention and MLP over the n tokens, each with its residual."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VideoMAE(nn.Module):
    """The encoder with the key names of the public checkpoints; in eval mode from the start.

    Source:
        Tong et al. 2022; Wang et al. 2023 (VideoMAE v2).
    """

    positions: Tensor

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        kernel = (config.tubelet, config.patch, config.patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, config.dim, kernel, kernel)})
        self.blocks = nn.ModuleList(
            Block(config.dim, config.hidden, Attention(config)) for _ in range(config.depth)
        )
        self.fc_norm = nn.LayerNorm(config.dim, eps=EPS)
        tokens = FRAMES // config.tubelet * (SIZE // config.patch) ** 2
        self.register_buffer("positions", _sinusoids(tokens, config.dim), persistent=False)
        self.eval()

    def forward(self, video: Float[Tensor, "b 3 16 224 224"]) -> Float[Tensor, "b d"]:
        """The normalized mean over all tokens, as the classifier's last layer gets it.

        Args:
            video: RGB in [-1, 1].

        Raises:
            ValueError: another number of frames or another size.
        """
        if tuple(video.shape[1:]) != (3, FRAMES, SIZE, SIZE):
            raise ValueError(
                f"video {tuple(video.shape)}: VideoMAE needs b 3 {FRAMES} {SIZE} {SIZE}"
            )
        mean, std = (video.new_tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
        x = self.patch_embed["proj"](((video + 1) / 2 - mean) / std)  # b d 8 h w
        x = rearrange(x, "b d t h w -> b (t h w) d") + self.positions
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x.mean(dim=1))


def load_videomae(path: str | Path) -> VideoMAE:
    """The encoder of a fine-tuned checkpoint of VideoMAE or VideoMAE v2.

    Args:
        path: such as `vit_g_hybrid_pt_1200e_ssv2_ft.pth`; the classifier's last layer is left out.

    Raises:
        ValueError: not a readable checkpoint, or of another model.
    """
    state = read_state_dict(path)
    for outer in ("module", "model"):
        state = state.get(outer, state) if isinstance(state, Mapping) else {}
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    try:
        with torch.device("meta"):
            model = VideoMAE(_config_of(state))
        model.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a fine-tuned VideoMAE ({reason})") from None
    model.positions = _sinusoids(*model.positions.shape)  # was without values, on meta
    return model.float().eval()


def _config_of(state: Mapping[str, Tensor]) -> VideoMAEConfig:
    dim, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
    if dim not in HEADS:
        raise KeyError(f"no published model has {dim} channels")
    return VideoMAEConfig(
        dim=dim,
        depth=sum(key.endswith(".norm1.weight") for key in state),
        heads=HEADS[dim],
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        patch=patch,
        tubelet=tubelet,
    )


def _sinusoids(count: int, dim: int) -> Float[Tensor, "n d"]:
    """Fixed positions: sines in even channels, cosines in odd ones."""
    places = torch.arange(count, dtype=torch.float64)[:, None]
    rates = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = places * rates
    return rearrange([angles.sin(), angles.cos()], "k n d -> n (d k)").float()
