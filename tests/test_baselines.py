"""Trivial reconstructions: what exactly they keep and what they lose."""

import pytest
import torch
from torch.testing import assert_close

from eval.metrics.baselines import last_frame_reconstruction, trilinear_reconstruction


def test_the_last_frames_are_exact_and_stand_for_their_group():
    video = torch.rand(2, 3, 9, 8, 8) * 2 - 1
    result = last_frame_reconstruction(video)
    kept = [0, 4, 4, 4, 4, 8, 8, 8, 8]
    assert_close(result, video[:, :, kept], rtol=0, atol=0)


def test_trilinear_is_exact_for_what_it_can_represent():
    ramp = torch.linspace(-1, 1, 9).reshape(1, 1, 9, 1, 1).expand(2, 3, 9, 16, 24)
    assert_close(trilinear_reconstruction(ramp), ramp)


def test_trilinear_sees_only_the_kept_frames():
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    changed = video.clone()
    changed[:, :, [1, 2, 3, 5, 6, 7]] = 0
    assert_close(trilinear_reconstruction(video), trilinear_reconstruction(changed))


def test_trilinear_averages_out_detail():
    checkered = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    result = trilinear_reconstruction(checkered.expand(1, 3, 5, 32, 32).contiguous())
    assert result.abs().max() < 0.01  # the triangle is cut off at the edges


def test_images_pass():
    video = torch.zeros(1, 3, 1, 8, 8)
    assert trilinear_reconstruction(video).shape == video.shape
    assert_close(last_frame_reconstruction(video), video)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"8 frames.* 1 \+ 4n .*Use 5 or 9"):
        last_frame_reconstruction(torch.zeros(1, 3, 8, 8, 8))
    with pytest.raises(ValueError, match="12x8 is not divisible by 8"):
        trilinear_reconstruction(torch.zeros(1, 3, 5, 12, 8))
