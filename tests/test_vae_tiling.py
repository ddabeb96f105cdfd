"""Tiles: shares that sum to 1, exactness within reach of convolutions, streams, refusals."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.builders.tiny_vae import TINY, make, video
from vae import VAEConfig, VideoVAE, memory
from vae.blocks import Attention
from vae.memory import groups_that_fit
from vae.tiling import Tiling, place

FLAT = VAEConfig(
    z_dim=2,
    dim=2,
    channel_multipliers=(1, 1),
    num_blocks=1,
    temporal_downsample=(True,),
    tmpe=False,
)
"""Two levels: convolutions reach 24 pixels at most."""


def without_attention(config: VAEConfig) -> VideoVAE:
    """A model whose attention is left out, so that it only reaches as far as convolutions do."""
    model = make(config)
    for module in model.modules():
        if isinstance(module, Attention):
            module.forward = lambda x, chunk=None: x
    return model


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 60),
    context=st.integers(0, 4),
    blend=st.integers(0, 5),
    more=st.integers(1, 20),
    ratio=st.sampled_from([1, 2, 8]),
    scale=st.sampled_from(["pixels", "positions"]),
)
def test_shares_of_all_tiles_sum_to_1_and_leave_out_the_context(
    size, context, blend, more, ratio, scale
):
    size, context, blend = (ratio * value for value in (size, context, blend))
    tile = 2 * context + blend + ratio * more
    tiling = Tiling(height=tile, width=tile, context=context, blend=blend)
    spans, scale = place(size, tile, tiling, ratio), 1 if scale == "pixels" else ratio
    total = torch.zeros(size // scale, dtype=torch.float64)
    for span in spans:
        weights = span.weights(scale)
        total[span.at(scale)] += weights
        assert weights.min() >= 0
        assert span.start % ratio == 0
        assert span.start + span.size <= size
        inner = span.start > 0, span.start + span.size < size
        for cut, edge in zip(inner, (weights, weights.flip(0)), strict=True):
            assert not cut or edge[: context // scale].count_nonzero() == 0
    assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)
    for left, right in pairwise(spans):
        assert left.start + left.size - right.start >= tiling.overlap


def test_neighbors_fade_linearly():
    tiling = Tiling(height=24, width=24, context=8, blend=4)
    first, second = place(28, 24, tiling, 4)
    assert (first.start, second.start) == (0, 4)
    expected = torch.ones(24, dtype=torch.float64)
    expected[12:] = 0
    expected[12:16] = torch.tensor([0.875, 0.625, 0.375, 0.125])
    assert_close(first.weights(1), expected)
    assert_close(second.weights(1), expected.flip(0))
    assert_close(first.weights(4), torch.tensor([1.0, 1, 1, 0.5, 0, 0], dtype=torch.float64))


def test_a_tile_that_covers_the_frame_changes_nothing():
    model, x = make(), video(9)
    whole = Tiling(height=16, width=24, context=0, blend=8)
    with torch.no_grad():
        posterior = model.encode(x)
        tiled = model.encode(x, tiling=whole)
        assert torch.equal(tiled.moments, posterior.moments)
        y = model.decode(posterior.mean)
        assert torch.equal(model.decode(posterior.mean, tiling=whole), y)


TILINGS = [
    Tiling(height=72, width=60, context=24, blend=8),
    Tiling(height=56, width=64, context=24, blend=0),
]


@pytest.mark.parametrize(
    ("tiling", "temporal"), [(TILINGS[0], "group_causal"), (TILINGS[1], "causal")]
)
def test_tiling_is_exact_where_only_convolutions_reach(tiling, temporal):
    model = without_attention(replace(FLAT, temporal=temporal))
    x = video(3, 86, 106)
    with torch.no_grad():
        posterior = model.encode(x)
        tiled = model.encode(x, tiling=tiling)
        assert_close(tiled.moments, posterior.moments, rtol=0, atol=1e-12)
        y = model.decode(posterior.mean)
        assert_close(model.decode(posterior.mean, tiling=tiling), y, rtol=0, atol=1e-12)


def test_too_little_context_is_seen():
    """The test above can fail."""
    model, x = without_attention(FLAT), video(3, 40, 100)
    tiling = Tiling(height=40, width=40, context=2, blend=0)
    with torch.no_grad():
        difference = model.encode(x, tiling=tiling).mean - model.encode(x).mean
    assert difference.abs().max() > 1e-6


def test_tiles_see_the_dilated_convolutions_with_enough_context():
    """PAC at the encoder's head reaches 12 latent positions more."""
    model, x = without_attention(replace(FLAT, tmpe=True)), video(1, 2, 180)
    short, long = (Tiling(height=120, width=120, context=c, blend=0) for c in (24, 48))
    with torch.no_grad():
        whole = model.encode(x).moments
        assert_close(model.encode(x, tiling=long).moments, whole, rtol=0, atol=1e-12)
        assert (model.encode(x, tiling=short).moments - whole).abs().max() > 1e-9


def test_tiles_stream_and_run_in_chunks_as_they_run_whole():
    model, x = make(), video(13, 24, 40)
    tiling = Tiling(height=24, width=24, context=0, blend=8)
    with torch.no_grad():
        z = model.encode(x, tiling=tiling)
        parts = list(model.stream_encode(x.split([1, 4, 8], dim=2), tiling=tiling))
        assert_close(torch.cat([part.moments for part in parts], dim=2), z.moments)
        assert_close(model.encode(x, tiling=tiling, chunk_groups=1).moments, z.moments)
        y = model.decode(z.mean, tiling=tiling)
        frames = list(model.stream_decode(z.mean.split([2, 2], dim=2), tiling=tiling))
        assert_close(torch.cat(frames, dim=2), y)
        assert_close(model.decode(z.mean, tiling=tiling, chunk_groups=2), y)
        assert not torch.allclose(y, model.decode(z.mean), atol=1e-6)


def test_tiles_of_padded_videos_are_cropped_back():
    model, x = make(), video(6, 21, 35)
    tiling = Tiling(height=32, width=40, context=8, blend=8)
    with torch.no_grad():
        y = model.reconstruct(x, pad=True, tiling=tiling)
    assert y.shape == x.shape


def test_smaller_tiles_leave_room_for_more_groups(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 20_000_000_000)
    config, x = VAEConfig(), torch.empty(1, 3, 81, 512, 512, device="meta")
    size = (81, 512, 512)
    whole = groups_that_fit(x, size, config)
    tiled = groups_that_fit(x, size, config, Tiling(height=256, width=1024))
    assert 1 <= whole < tiled


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 128}, r"height=128 of a tile must be more than .* 2 \* context \+ blend = 192"),
        ({"width": 192}, "width=192"),
        ({"context": -8}, "must not be negative"),
        ({"blend": -8}, "must not be negative"),
    ],
)
def test_impossible_tilings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**values)


@pytest.mark.parametrize("name", ["height", "width", "context", "blend"])
def test_tilings_that_the_vae_cannot_divide_are_refused(name):
    tiling = replace(Tiling(), **{name: getattr(Tiling(), name) + 4})
    model = make(replace(TINY, z_dim=2))
    message = f"{name}=.* of the tiling must be a multiple of 8"
    with pytest.raises(ValueError, match=message):
        model.encode(video(1), tiling=tiling)
    with pytest.raises(ValueError, match=message):
        next(model.stream_decode([torch.zeros(1, 2, 1, 2, 2)], tiling=tiling))
