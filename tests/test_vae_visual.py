"""Latent maps (supplement, Eq. 6) and unselected frames (Fig. 2)."""

import pytest
import torch
from torch.testing import assert_close

from tests.builders.tiny_vae import TINY, make
from vae.visual import latent_maps, unselected_frames


def test_each_map_fills_minus_1_to_1():
    z = torch.tensor([[0.0, 1, 4], [10, 20, 30], [5, 5, 5]]).view(1, 3, 1, 1, 3)
    expected = torch.tensor([[-1, -0.5, 1], [-1, 0, 1], [0, 0, 0]]).view(1, 3, 1, 1, 3)
    assert_close(latent_maps(z), expected)


def test_maps_of_other_frames_channels_and_samples_do_not_matter():
    z = torch.randn(2, 4, 3, 5, 6)
    maps = latent_maps(z)
    assert_close(maps[1:, 2:3, 1:2], latent_maps(z[1:, 2:3, 1:2]))
    assert_close(maps.amin((-2, -1)), torch.full((2, 4, 3), -1.0))
    assert_close(maps.amax((-2, -1)), torch.ones(2, 4, 3))
    assert_close(latent_maps(3 * z - 2), maps)


def test_unselected_frames_are_the_others():
    model = make()
    z = torch.randn(2, 4, 3, 2, 1, dtype=torch.float64)
    with torch.no_grad():
        branches, chosen = model.decode_branches(z), model.decode(z)
    left_out = unselected_frames(branches, TINY)
    assert_close(chosen + left_out, branches.sum(1))
    for t in range(9):
        keyframe = t in (0, 1, 5)
        assert_close(left_out[:, :, t], branches[:, int(keyframe), :, t], rtol=0, atol=0)


def test_one_branch_has_no_unselected_frames():
    with pytest.raises(ValueError, match="need b 2 3 t h w"):
        unselected_frames(torch.zeros(1, 1, 3, 5, 8, 8), TINY)
