"""V-JEPA's vision transformer with the attentive pooler of its Something-Something v2 probe: the
features of JEDi.

What JEDi's public code does with them: frames in [0, 1], normalized by ImageNet's mean and standard
deviation, go through the target encoder of ViT-H/16; one learned query gathers its 1568 tokens. It
leaves the frames' size to the user and interpolates the positions; here frames are brought to the
size of V-JEPA's training, 224x224, so that both agree for clips of that size. At which size the
paper's own scores were measured is not known here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from common.weights import check_state, read_state_dict
from eval.features.video_transformer import EPS, MLP, TransformerShape, VideoTransformer, shape_of

POOLER_EPS = 1e-5  # of the pooler's layer norms


class CrossAttention(nn.Module):
    """Attention of queries to tokens."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.heads = shape.heads
        self.q = nn.Linear(shape.dim, shape.dim)
        self.kv = nn.Linear(shape.dim, 2 * shape.dim)
        self.proj = nn.Linear(shape.dim, shape.dim)

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

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, shape.dim))
        self.cross_attention_block = nn.ModuleDict(
            {
                "norm1": nn.LayerNorm(shape.dim, eps=POOLER_EPS),
                "xattn": CrossAttention(shape),
                "norm2": nn.LayerNorm(shape.dim, eps=POOLER_EPS),
                "mlp": MLP(shape),
            }
        )

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """One vector gathered from the n tokens."""
        block = self.cross_attention_block
        query = repeat(self.query_tokens, "1 1 d -> b 1 d", b=len(x))
        query = query + block["xattn"](query, block["norm1"](x))
        return (query + block["mlp"](block["norm2"](query)))[:, 0]


class VJEPA(VideoTransformer):
    """Encoder and pooler with the key names of the public checkpoints; in eval mode from the start.

    Source:
        Bardes et al. 2024 (V-JEPA); Luo et al. 2024 (JEDi).
    """

    title = "V-JEPA"

    def __init__(self, shape: TransformerShape):
        super().__init__(shape)
        positions = torch.zeros(1, shape.tokens, shape.dim)  # fixed ones; checkpoints hold them
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.norm = nn.LayerNorm(shape.dim, eps=EPS)
        self.pooler = Pooler(shape)
        self.eval()

    def forward(self, video: Float[Tensor, "b 3 16 224 224"]) -> Float[Tensor, "b d"]:
        """What the pooler gathers from all tokens; see `tokens` for the input."""
        return self.pooler(self.norm(self.tokens(video, self.pos_embed)))


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
        shape = shape_of(state)
    except KeyError as error:
        raise ValueError(f"{encoder}: not a checkpoint of V-JEPA ({error})") from None
    state |= {key: value for key, value in pooler.items() if key.startswith("pooler.")}
    with torch.device("meta"):
        model = VJEPA(shape)
    check_state(state, model.state_dict(), f"{encoder}, {probe}: not V-JEPA and its probe")
    model.load_state_dict(state, assign=True)
    return model.float().eval()


def _stripped(checkpoint: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    """A part of a checkpoint without what wrappers put before its names."""
    state = checkpoint.get(part, checkpoint)
    return {key.removeprefix("module.").removeprefix("backbone."): v for key, v in state.items()}
