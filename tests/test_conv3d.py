"""3D convolutions of a single frame: equal to PyTorch's in float32, and right in bfloat16."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from common.conv3d import Conv3d
from tests.builders.tiny_comparators import smallest, tiny
from tests.builders.vectors import uniform
from vae.discriminator import Discriminator, DiscriminatorConfig
from vae.registry import OTHERS


class Frames(TorchFunctionMode):
    """Records the frames of the input of every 3D convolution."""

    def __init__(self):
        super().__init__()
        self.seen: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.conv3d:
            self.seen.append(args[0].shape[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 4, 4), {"stride": (1, 2, 2), "padding": 1}),
        ((3, 4, 4), {"stride": 2, "padding": 1}),
        ((3, 3, 3), {"padding": (2, 1, 1)}),
        ((3, 3, 3), {"padding": (2, 1, 1), "stride": (2, 1, 1)}),
        ((3, 3, 3), {"padding": (2, 1, 1), "dilation": (2, 1, 1)}),
        ((2, 1, 1), {"padding": (1, 0, 0), "groups": 2}),
        ((1, 3, 3), {"padding": (0, 1, 1), "bias": False}),
        (1, {"padding": 1}),
    ],
)
def test_it_is_pytorchs_convolution(kernel, options, frames):
    torch.manual_seed(0)
    ours = Conv3d(4, 6, kernel, dtype=torch.float64, **options)
    theirs = torch.nn.Conv3d(4, 6, kernel, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, frames, 9, 8, dtype=torch.float64)
    results = []
    for conv in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = conv(leaf)
        y.square().sum().backward()
        results.append((y, leaf.grad, *(p.grad for p in conv.parameters())))
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected)


def test_a_kernel_longer_than_the_clip_is_refused_as_pytorch_does():
    with pytest.raises(RuntimeError, match=r"Kernel size .* input size"):
        Conv3d(1, 1, 3)(torch.zeros(1, 1, 1, 4, 4))


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 64, 64), (1, 256, 256), (5, 32, 32)])
def test_the_discriminator_is_right_in_bfloat16(size):
    torch.manual_seed(0)
    model = Discriminator(DiscriminatorConfig(channels=16))
    x = uniform(0, (1, 3, *size))
    expected = model(x)
    with Frames() as frames, torch.autocast("cpu", torch.bfloat16):
        y = model(x).float()
    assert (y - expected).norm() < 0.05 * expected.norm()
    assert 1 not in frames.seen


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_no_comparator_runs_3d_convolutions_of_one_frame(name):
    """Neither of an image nor of a video whose first frame some of them process alone."""
    model = tiny(name)
    clips = [smallest(model), (model.config.first_frames, *smallest(model)[1:])]
    with Frames() as frames:
        for size in clips:
            model.reconstruct(uniform(1, (1, 3, *size)))
    assert frames.seen
    assert 1 not in frames.seen


@torch.no_grad()
@pytest.mark.parametrize("name", ["cv_vae", "od_vae", "od_vae_gcconv", "opensora_v12", "wan"])
def test_comparators_are_right_for_one_frame_in_bfloat16(name):
    model = tiny(name)
    x = uniform(1, (1, 3, 1, 16, 24))
    expected = model.reconstruct(x)
    with Frames() as frames, torch.autocast("cpu", torch.bfloat16):
        y = model.reconstruct(x).float()
    assert (y - expected).norm() < 0.1 * expected.norm()
    assert 1 not in frames.seen
