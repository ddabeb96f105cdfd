"""Group causal convolution as a layer of `b c t h w`, for models that are not ours."""

from einops import rearrange
from torch import Tensor

from vae.comparators.blocks import Size
from vae.convs import Chunk, TemporalConv


class GroupCausalConv3d(TemporalConv):
    """`TemporalConv` of a whole video, with the margins and strides that OD-VAE's layers have.

    The input is one image frame, then groups of `group` frames. A temporal stride of 2 keeps the
    image frame and frames 0, 2, ... of each group.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        group: int,
        margin: int = 1,
        stride: Size = 1,
    ):
        """`margin`: pixels of zeros around a frame; `stride` in time 1 or 2."""
        super().__init__(in_channels, out_channels, group=group, causal=False)
        self.margin = margin
        self.stride = (stride,) * 3 if isinstance(stride, int) else stride

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """`b c 1+n*group h w` -> `b c' t' h' w'`; t' = 1 + n * group / stride."""
        chunk = Chunk(batch=len(input), image=True, past={}, last=True)
        y = self.run(rearrange(input, "b c t h w -> (b t) c h w"), chunk)
        y = y if self.stride[0] == 1 else chunk.kept(y)
        return rearrange(y, "(b t) c h w -> b c t h w", b=len(input))
