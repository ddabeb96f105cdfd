"""Triton kernels of RMSNorm + SiLU: each value is read once and written once.

A program takes blocks of positions of one branch. Statistics and arithmetic are float32. The
gradient of the gain is summed per program, then over programs in a fixed order, so that it is the
same in every run.
"""

# Triton compiles these functions from their source; a type checker reads them as Python.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportReturnType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from vae.norms import EPS

VALUES = 4096  # of a block
PROGRAMS = 1024  # at most that share the backward pass of a branch


@triton.jit
def _normalized(
    x_ptr,
    gain_ptr,
    positions,
    first,
    branch,
    branches,
    channels,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Offsets, mask, x_hat, gain and scale of a block of positions, all float32."""
    row = first + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_C)
    offset = (row[:, None] * branches + branch) * channels + column[None, :]
    mask = (row[:, None] < positions) & (column[None, :] < channels)
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    gain = tl.load(gain_ptr + branch * channels + column, mask=column < channels, other=0.0)
    length = tl.sqrt(tl.sum(x * x, axis=1))
    root = tl.sqrt(tl.full([1], 1.0, tl.float32) * channels)
    scale = root / tl.maximum(length, eps)
    return offset, mask, x * scale[:, None], gain.to(tl.float32)[None, :], scale[:, None]


@triton.jit
def _forward(
    x_ptr,
    gain_ptr,
    y_ptr,
    positions,
    branches,
    channels,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    first, branch = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.program_id(1)
    offset, mask, x_hat, gain, _ = _normalized(
        x_ptr, gain_ptr, positions, first, branch, branches, channels, eps, BLOCK_N, BLOCK_C
    )
    u = x_hat * gain
    tl.store(y_ptr + offset, (u * tl.sigmoid(u)).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    grad_ptr,
    x_ptr,
    gain_ptr,
    grad_x_ptr,
    partial_ptr,
    positions,
    branches,
    channels,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program, branch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for first in range(program * BLOCK_N, positions, tl.num_programs(0) * BLOCK_N):
        offset, mask, x_hat, gain, scale = _normalized(
            x_ptr, gain_ptr, positions, first, branch, branches, channels, eps, BLOCK_N, BLOCK_C
        )
        grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        u = x_hat * gain
        gate = tl.sigmoid(u)
        grad_u = grad * (gate * (1 + u * (1 - gate)))
        total += tl.sum(grad_u * x_hat, axis=0)
        grad_hat = grad_u * gain
        along = tl.sum(grad_hat * x_hat, axis=1) / channels
        grad_x = scale * (grad_hat - x_hat * along[:, None])
        tl.store(grad_x_ptr + offset, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
    column = tl.arange(0, BLOCK_C)
    place = (program * branches + branch) * channels + column
    tl.store(partial_ptr + place, total, mask=column < channels)


def forward(x: Tensor, gain: Tensor, branches: int) -> Tensor:
    """silu(RMSNorm(x)) of `n (k c) h w`."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    positions, channels, rows, columns = _sizes(x, branches)
    grid = (triton.cdiv(positions, rows), branches)
    _forward[grid](x, gain, y, positions, branches, channels, EPS, BLOCK_N=rows, BLOCK_C=columns)
    return y


def backward(grad: Tensor, x: Tensor, gain: Tensor, branches: int) -> tuple[Tensor, Tensor]:
    """Gradients of x and gain."""
    x = x.contiguous(memory_format=torch.channels_last)
    grad = grad.contiguous(memory_format=torch.channels_last)
    positions, channels, rows, columns = _sizes(x, branches)
    programs = min(triton.cdiv(positions, rows), PROGRAMS)
    grad_x = torch.empty_like(x)
    partial = torch.empty(programs, branches * channels, device=x.device, dtype=torch.float32)
    _backward[programs, branches](
        grad,
        x,
        gain,
        grad_x,
        partial,
        positions,
        branches,
        channels,
        EPS,
        BLOCK_N=rows,
        BLOCK_C=columns,
    )
    return grad_x, partial.sum(dim=0).to(gain.dtype)


def _sizes(x: Tensor, branches: int) -> tuple[int, int, int, int]:
    """Positions, channels of a branch, and a block's positions and channels."""
    channels = x.shape[1] // branches
    columns = triton.next_power_of_2(channels)
    return x.numel() // x.shape[1], channels, max(1, VALUES // columns), columns
