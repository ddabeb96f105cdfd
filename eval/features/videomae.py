"""VideoMAE's vision transformer: features that mind motion more than those of I3D.

With the giant model of VideoMAE v2, fine-tuned on Something-Something v2, the distance is the
content-debiased FVD of Ge et al. 2024.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.weights import check_state, read_state_dict
from eval.features.video_transformer import EPS, TransformerShape, VideoTransformer, shape_of


class VideoMAE(VideoTransformer):
    """The encoder with the key names of the public checkpoints; in eval mode from the start.

    Source:
        Tong et al. 2022; Wang et al. 2023 (VideoMAE v2).
    """

    title = "VideoMAE"
    positions: Tensor

    def __init__(self, shape: TransformerShape):
        super().__init__(shape)
        self.fc_norm = nn.LayerNorm(shape.dim, eps=EPS)
        self.register_buffer("positions", _sinusoids(shape.tokens, shape.dim), persistent=False)
        self.eval()

    def forward(self, video: Float[Tensor, "b 3 16 224 224"]) -> Float[Tensor, "b d"]:
        """The normalized mean over all tokens, as the classifier's last layer gets it; see
        `tokens` for the input."""
        return self.fc_norm(self.tokens(video, self.positions).mean(dim=1))


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
        shape = shape_of(state)
        for i in range(shape.depth):  # keys have no bias
            query, value = (state.pop(f"blocks.{i}.attn.{name}_bias") for name in "qv")
            zeros = torch.zeros_like(query)
            state[f"blocks.{i}.attn.qkv.bias"] = torch.cat([query, zeros, value])
    except KeyError as error:
        raise ValueError(f"{path}: not a fine-tuned VideoMAE ({error})") from None
    with torch.device("meta"):
        model = VideoMAE(shape)
    check_state(state, model.state_dict(), f"{path}: not a fine-tuned VideoMAE")
    model.load_state_dict(state, assign=True)
    return model.float().eval()


def _sinusoids(count: int, dim: int) -> Float[Tensor, "n d"]:
    """Fixed positions: sines in even channels, cosines in odd ones; on the CPU, unlike weights that
    are still to be loaded."""
    places = torch.arange(count, dtype=torch.float64, device="cpu")[:, None]
    rates = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    angles = places * rates
    return rearrange([angles.sin(), angles.cos()], "k n d -> n (d k)").float()
