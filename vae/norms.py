"""Normalization over the channels of each branch, alone and with SiLU as one operation.

Statistics are float32 or wider, results have the type of the input. For the backward pass the input
alone is kept. On CUDA one Triton kernel runs each direction (`vae.norm_kernels`), inside
torch.compile too; elsewhere and in float64 the same formulas run as PyTorch operations.
"""

import importlib.util
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

EPS = 1e-12  # of lengths: only keeps an all-zero position from dividing by zero


class RMSNorm(nn.Module):
    """x / |x| * sqrt(C) * gain over the C channels of each branch on its own; no bias."""

    def __init__(self, channels: int, *, branches: int):
        """`channels` counts all branches."""
        super().__init__()
        self.branches = branches
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`(b t) c h w` -> the same shape."""
        x_hat, gain, _ = _normalize(x, self.gain, self.branches)
        return _merge(x_hat * gain, x)


class NormSiLU(RMSNorm):
    """RMSNorm, then SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _NormSiLU.apply(x, self.gain, self.branches)  # type: ignore[assignment]
        return y


class _NormSiLU(torch.autograd.Function):
    """Differentiable any number of times; the second backward pass is always PyTorch operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, branches: int) -> Tensor:
        ctx.save_for_backward(x, gain)
        ctx.branches = branches
        if _has_kernel(x):
            return norm_silu_kernel(x, gain, branches)
        # in place: fresh memory costs a CPU more than the arithmetic
        x_hat, split_gain, _ = _normalize(x, gain, branches)
        return _merge(F.silu(x_hat.mul_(split_gain), inplace=True), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, gain = ctx.saved_tensors
        if _has_kernel(x) and not torch.is_grad_enabled():
            return *norm_silu_backward_kernel(grad, x, gain, ctx.branches), None
        return *_backward(grad, x, gain, ctx.branches), None


def _backward(grad: Tensor, x: Tensor, gain: Tensor, branches: int) -> tuple[Tensor, Tensor]:
    """Gradients of x and gain, given that of silu(x_hat * gain)."""
    x_hat, split_gain, scale = _normalize(x, gain, branches)
    grad = _split(grad, branches).to(x_hat.dtype)
    u = x_hat * split_gain
    gate = torch.sigmoid(u)
    grad_u = grad * (gate * (1 + u * (1 - gate)))
    grad_gain = (grad_u * x_hat).sum(dim=(0, 1, 2))  # k c
    grad_hat = grad_u * split_gain
    # x_hat = x sqrt(c) / |x| does not change along x
    along = (grad_hat * x_hat).mean(dim=-1, keepdim=True)
    grad_x = scale * (grad_hat - x_hat * along)
    return _merge(grad_x, x), grad_gain.flatten().to(gain.dtype)


def _split(x: Tensor, branches: int) -> Tensor:
    return rearrange(x, "n (k c) h w -> n h w k c", k=branches)


def _merge(y: Tensor, x: Tensor) -> Tensor:
    """The inverse of `_split`, in the type of x."""
    return rearrange(y, "n h w k c -> n (k c) h w").to(x.dtype)


def _normalize(x: Tensor, gain: Tensor, branches: int) -> tuple[Tensor, Tensor, Tensor]:
    """x / |x| * sqrt(C) (n h w k c), the gain (k c), and what x was multiplied by (n h w k 1)."""
    x = _split(x, branches)
    wide = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).clamp_min(EPS)
    scale = x.shape[-1] ** 0.5 / length
    return x * scale, rearrange(gain, "(k c) -> k c", k=branches), scale


def _has_kernel(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16, torch.float32) and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


# Operations of their own, so that torch.compile and tensors without values pass through them.


@torch.library.custom_op("ivvae::norm_silu", mutates_args=())
def norm_silu_kernel(x: Tensor, gain: Tensor, branches: int) -> Tensor:
    """The forward pass as one Triton kernel, `n (k c) h w`, channels-last."""
    from vae.norm_kernels import forward

    return forward(x, gain, branches)


@norm_silu_kernel.register_fake
def _(x: Tensor, gain: Tensor, branches: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("ivvae::norm_silu_backward", mutates_args=())
def norm_silu_backward_kernel(
    grad: Tensor, x: Tensor, gain: Tensor, branches: int
) -> tuple[Tensor, Tensor]:
    """The gradients of x and gain as one Triton kernel and a sum of its partial results."""
    from vae.norm_kernels import backward

    return backward(grad, x, gain, branches)


@norm_silu_backward_kernel.register_fake
def _(grad: Tensor, x: Tensor, gain: Tensor, branches: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(gain)
