"""V-JEPA's vision transformer with the attentive pooler of its Something-Something v2 probe: the
features of JEDi.

What JEDi's public code does with them: frames in [0, 1], normalized by ImageNet's mean and standard
deviation, go through the target encoder of ViT-H/16; one learned query gathers its 1568 tokens. It
leaves the frames' size to the user and interpolates the positions; here frames are brought to the
size of V-JEPA's training, 224x224, so that both agree for clips of that size. At which size the
paper's own scores were measured is not known here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from common.config import Config
from common.weights import read_state_dict
from eval.features.videomae import EPS, FRAMES, MEAN, MLP, SIZE, STD, Block

POOLER_EPS = 1e-5  # of the pooler's layer norms
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Attention heads by width: tiny, small, base, large, huge; the last two are published."""


@dataclass(frozen=True, kw_only=True)
class VJEPAConfig(Config):
    """Shape of the transformer; the defaults are ViT-H/16."""

    dim: Annotated[int, Ge(6)] = 1280
    """Channels of a token, and of the features."""
    depth: Annotated[int, Ge(1)] = 32
    """Blocks."""
    heads: Annotated[int, Ge(1)] = 16
    """Attention heads, of the pooler, too."""
    hidden: Annotated[int, Ge(1)] = 5120
    """Channels inside the MLPs."""
    patch: Annotated[int, Ge(1)] = 16
    """Pixels along each side of a token's patch."""
    tubelet: Annotated[int, Ge(1)] = 2
    """Frames of a token."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along t, h and w."""
        return FRAMES // self.tubelet, SIZE // self.patch, SIZE // self.patch


class Attention(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, config: VJEPAConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Attention over the n tokens, without the residual."""
        q, k, v = rearrange(self.qkv(x), "b n (k h d) -> k b h n d", k=3, h=self.heads)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(y, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Attention of queries to tokens."""

    def __init__(self, config: VJEPAConfig):
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.dim, config.dim)
        self.kv = nn.Linear(config.dim, 2 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(
        self, query: Float[Tensor, "b q d"], x: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b q d"]:
        """Attention of the q queries to the n tokens, without the residual."""
        q = rearrange(self.q(query), "b q (h d) -> b h q d", h=self.heads)
        k, v = rearrange(self.kv(x), "b n (k h d) -> k b h n d", k=2, h=self.heads)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(y, "b h q d -> b q (h d)"))


class Pooler(nn.Module):
    """One learned query that attends to all tokens, and an MLP."""

    def __init__(self, config: VJEPAConfig):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.cross_attention_block = nn.ModuleDict(
            {
                "norm1": nn.LayerNorm(config.dim, eps=POOLER_EPS),
                "xattn": CrossAttention(config),
                "norm2": nn.LayerNorm(config.dim, eps=POOLER_EPS),
                "mlp": MLP(config.dim, config.hidden),
            }
        )

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """One vector gathered from the n tokens."""
        block = self.cross_attention_block
        query = repeat(self.query_tokens, "1 1 d -> b 1 d", b=len(x))
        query = query + block["xattn"](query, block["norm1"](x))
        return (query + block["mlp"](block["norm2"](query)))[:, 0]


class VJEPA(nn.Module):
    """Encoder and pooler with the key names of the public checkpoints; in eval mode from the start.

    Source:
        Bardes et al. 2024 (V-JEPA); Luo et al. 2024 (JEDi).
    """

    def __init__(self, config: VJEPAConfig):
        super().__init__()
        kernel = (config.tubelet, config.patch, config.patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, config.dim, kernel, kernel)})
        positions = position_embedding(config.grid, config.dim)[None]
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.hidden, Attention(config)) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=EPS)
        self.pooler = Pooler(config)
        self.eval()

    def forward(self, video: Float[Tensor, "b 3 16 224 224"]) -> Float[Tensor, "b d"]:
        """What the pooler gathers from all tokens.

        Args:
            video: RGB in [-1, 1].

        Raises:
            ValueError: another number of frames or another size.
        """
        if tuple(video.shape[1:]) != (3, FRAMES, SIZE, SIZE):
            raise ValueError(f"video {tuple(video.shape)}: V-JEPA needs b 3 {FRAMES} {SIZE} {SIZE}")
        mean, std = (video.new_tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
        x = self.patch_embed["proj"](((video + 1) / 2 - mean) / std)  # b d t h w
        x = rearrange(x, "b d t h w -> b (t h w) d") + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.pooler(self.norm(x))


def load_vjepa(encoder: str | Path, probe: str | Path) -> VJEPA:
    """The network of the public checkpoints.

    Args:
        encoder: such as `vith16.pth.tar`; its `target_encoder` is taken.
        probe: such as `ssv2-probe.pth.tar`, of the same width; its last layer is left out.

    Raises:
        ValueError: not readable checkpoints, or of other models.
    """
    state = _stripped(read_state_dict(encoder), "target_encoder")
    pooler = _stripped(read_state_dict(probe), "classifier")
    try:
        config = _config_of(state)
    except KeyError as error:
        raise ValueError(f"{encoder}: not a checkpoint of V-JEPA ({error})") from None
    found = state | {key: v for key, v in pooler.items() if key.startswith("pooler.")}
    with torch.device("meta"):
        model = VJEPA(config)
    try:
        model.load_state_dict(found, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{encoder}, {probe}: not V-JEPA and its probe ({reason})") from None
    return model.float().eval()


def position_embedding(grid: tuple[int, int, int], dim: int) -> Float[Tensor, "n d"]:
    """Fixed positions of the tokens of a video, in the order t h w.

    A third of the channels each for t, h and w (2 ceil(dim / 6), the last cut off where they are
    more than `dim`): sines of all rates, then cosines.
    """
    width = 2 * -(-dim // 6)
    rates = 10_000.0 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))  # n 3
    angles = places[:, :, None] * rates
    waves = torch.stack([angles.sin(), angles.cos()], dim=2)  # n 3 2 rates
    return rearrange(waves, "n side wave rate -> n (side wave rate)")[:, :dim].float()


def _stripped(checkpoint: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    """A part of a checkpoint without what wrappers put before its names."""
    state = checkpoint.get(part, checkpoint)
    return {key.removeprefix("module.").removeprefix("backbone."): v for key, v in state.items()}


def _config_of(state: Mapping[str, Tensor]) -> VJEPAConfig:
    dim, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
    if dim not in HEADS:
        raise KeyError(f"no published model has {dim} channels")
    return VJEPAConfig(
        dim=dim,
        depth=sum(key.endswith(".norm1.weight") for key in state),
        heads=HEADS[dim],
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        patch=patch,
        tubelet=tubelet,
    )
