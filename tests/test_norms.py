"""RMSNorm with SiLU as one operation: formulas, what it keeps, the GPU kernels interpreted."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from vae.norms import NormSiLU


def make(channels: int, branches: int, dtype: torch.dtype = torch.float64) -> NormSiLU:
    norm = NormSiLU(channels, branches=branches).to(dtype)
    torch.nn.init.normal_(norm.gain, mean=1, std=0.3)
    return norm


def activations(channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(3, channels, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def plainly(norm: NormSiLU, x: Tensor) -> Tensor:
    """The definition, branch by branch."""
    halves = [F.normalize(half, dim=1) for half in x.chunk(norm.branches, dim=1)]
    root = math.sqrt(x.shape[1] // norm.branches)
    return F.silu(torch.cat(halves, dim=1) * root * norm.gain.view(-1, 1, 1))


@pytest.mark.parametrize("branches", [1, 2])
def test_values_and_gradients_are_those_of_the_definition(branches):
    norm, x = make(6, branches), activations(6).requires_grad_()
    inputs, direction = (x, norm.gain), torch.randn(3, 6, 4, 5, dtype=torch.float64)
    assert_close(norm(x), plainly(norm, x), rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(norm(x), inputs, direction)
    assert_close(ours, torch.autograd.grad(plainly(norm, x), inputs, direction))


def test_first_and_second_derivatives_are_right():
    norm, x = make(4, 2), activations(4)[:1, :, :2, :2].requires_grad_()
    torch.autograd.gradcheck(lambda x, gain: norm(x), (x, norm.gain))
    torch.autograd.gradgradcheck(lambda x, gain: norm(x), (x, norm.gain))


def test_the_backward_pass_keeps_the_input_alone_in_its_type():
    norm, x = make(6, 2, torch.float32), activations(6, torch.bfloat16).requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), norm.gain.data_ptr()}


def test_compiled_it_gives_the_same():
    norm, x = make(6, 2), activations(6).requires_grad_()
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x), norm(x), rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(f(x).square().sum(), norm.gain) for f in (compiled, norm)]
    assert_close(*gradients)


INTERPRETED = """
import torch
from torch.testing import assert_close
from vae import norm_kernels
from vae.norms import NormSiLU

float32, bfloat16 = torch.float32, torch.bfloat16
for channels, branches, dtype in ((10, 2, float32), (64, 1, bfloat16), (24, 2, float32)):
    x = torch.randn(3, channels, 4, 5).to(dtype, memory_format=torch.channels_last).requires_grad_()
    norm, grad = NormSiLU(channels, branches=branches), torch.randn(x.shape).to(dtype)
    torch.nn.init.normal_(norm.gain, mean=1, std=0.3)
    y, tolerance = norm(x), {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    with torch.no_grad():
        assert_close(norm_kernels.forward(x, norm.gain, branches), y, **tolerance)
        got = norm_kernels.backward(grad, x, norm.gain, branches)
    assert_close(got, torch.autograd.grad(y, (x, norm.gain), grad), **tolerance)
print("equal")
"""


def test_the_kernels_interpreted_on_a_cpu_give_the_formulas_results():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when Triton is imported
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr
