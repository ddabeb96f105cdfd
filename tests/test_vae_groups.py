"""Groups of frames: any split equals the whole, and which frames see which."""

from itertools import pairwise
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.builders.tiny_vae import make, tiny, video
from vae.config import PRESETS
from vae.convs import Chunk, KTCConv, TemporalConv

FAMILY = [name for name in PRESETS if name != "ivvae_dim96"]  # with dim=4 that is ivvae
EIGHTFOLD = tiny("ivvae", z_dim=32, num_blocks=2, temporal_downsample=(True, True, True))


@st.composite
def splits(draw):
    """Groups per chunk; the first chunk has the image frame besides, and perhaps no group."""
    groups = draw(st.integers(1, 4))
    cuts = draw(st.sets(st.integers(1, groups - 1))) if groups > 1 else set()
    sizes = [b - a for a, b in pairwise([0, *sorted(cuts), groups])]
    return ([0] if draw(st.booleans()) else []) + sizes


@st.composite
def configs(draw):
    """Every preset, pattern in time and number of levels, at a few channels."""
    pattern = draw(st.lists(st.booleans(), min_size=1, max_size=3).filter(any))
    levels = len(pattern) + 1
    return tiny(
        draw(st.sampled_from(FAMILY)),
        z_dim=draw(st.sampled_from([2, 4, 32])),
        channel_multipliers=draw(st.tuples(*levels * [st.sampled_from([1, 2])])),
        num_blocks=draw(st.integers(1, 2)),
        temporal_downsample=tuple(pattern),
    )


@settings(max_examples=20, deadline=None)
@given(
    config=configs(),
    chunks=splits(),
    size=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    batch=st.integers(1, 2),
    chunk_groups=st.integers(1, 4),
)
def test_any_split_into_chunks_equals_the_whole(config, chunks, size, batch, chunk_groups):
    model, ratio = make(config), config.temporal_ratio
    h, w = (config.spatial_ratio * n for n in size)
    x = video(1 + ratio * sum(chunks), h, w, b=batch)
    frames = [n * ratio + (i == 0) for i, n in enumerate(chunks)]
    latent_frames = [n + (i == 0) for i, n in enumerate(chunks)]
    with torch.no_grad():
        whole = model.encode(x, chunk_groups=sum(chunks))
        parts = list(model.stream_encode(x.split(frames, dim=2)))
        assert_close(torch.cat([p.moments for p in parts], dim=2), whole.moments)
        assert_close(model.encode(x, chunk_groups=chunk_groups).moments, whole.moments)
        y = model.decode(whole.mean, chunk_groups=sum(chunks))
        decoded = list(model.stream_decode(whole.mean.split(latent_frames, dim=2)))
        assert_close(torch.cat(decoded, dim=2), y)
        assert_close(model.decode(whole.mean, chunk_groups=chunk_groups), y)


@pytest.mark.parametrize("config", [*map(tiny, FAMILY), EIGHTFOLD], ids=[*FAMILY, "eightfold"])
def test_which_frames_an_output_depends_on(config):
    """No frame depends on a later group, and inside a group all depend on each other.

    With causal convolutions the last still holds, because a group is compressed as a whole.
    """
    model, ratio = make(config), config.temporal_ratio
    x = video(1 + 3 * ratio, 8, 8).requires_grad_()
    y = model.decode(model.encode(x).mean)
    group = [-(-t // ratio) for t in range(x.shape[2])]
    for t in range(x.shape[2]):
        reached = reach(y[:, :, t], x, axis=2)
        assert not any(hit for s, hit in enumerate(reached) if group[s] > group[t])
        assert all(hit for s, hit in enumerate(reached) if group[s] == group[t])


@pytest.mark.parametrize("preset", FAMILY)
def test_inside_a_group_frames_see_each_other_at_full_length(preset):
    """The point of group causal convolution (paper, Sec. 3.3): before time is halved, and after it
    is doubled, every frame of a group depends on every other. Causal convolutions look back only.
    """
    model = make(tiny(preset, num_blocks=2))
    encoder, decoder = (cast(list[Any], [*half.layers]) for half in (model.encoder, model.decoder))
    halving, *_ = (i for i, layer in enumerate(encoder) if getattr(layer, "temporal", None))
    *_, doubling = (i for i, layer in enumerate(decoder) if getattr(layer, "temporal", None))
    # the block right before time is halved leaves out what that drops
    for layers in (encoder[: halving - 1], decoder[doubling + 1 :]):
        x = torch.randn(9, layers[0].norm1.gain.numel(), 8, 8, dtype=torch.float64)
        y = x.requires_grad_()
        for layer in layers:
            y = layer(y, Chunk(batch_size=1, image=True, past={}))
        for t in range(9):
            first, last = (4 * ((t - 1) // 4) + 1, 4 * ((t - 1) // 4) + 4) if t else (0, 0)
            if model.config.temporal == "causal":
                last = t
            seen = reach(y[t], x, axis=0)
            assert all(seen[first : last + 1])
            assert not any(seen[last + 1 :])


def reach(y: Tensor, x: Tensor, axis: int) -> list[bool]:
    """Of which frames, along `axis` of x, the sum of y has a gradient."""
    (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    return gradient.movedim(axis, 0).flatten(1).any(dim=1).tolist()


@pytest.mark.parametrize("channels", [3, 4])  # all taps together; one by one
@pytest.mark.parametrize(
    ("causal", "expected"),
    [
        # frame by frame: which of image, 1 2 3 4, 5 6 7 8 it sees
        (False, ["0", "012", "123", "234", "34", "456", "567", "678", "78"]),
        (True, ["0", "01", "012", "123", "234", "345", "456", "567", "678"]),
    ],
)
def test_one_convolution_over_time_sees_its_neighbors(channels, causal, expected):
    conv = TemporalConv(2, channels, group=4, causal=causal).double()
    x = torch.randn(9, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    y = conv(x, Chunk(batch_size=1, image=True, past={}))
    seen = ["".join(str(s) for s, hit in enumerate(reach(y[t], x, 0)) if hit) for t in range(9)]
    assert seen == expected


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("groups", "batch"), [(1, 2), (3, 2), (3, 1), (0, 1)])
def test_a_convolution_over_time_is_a_padded_conv3d_per_group(channels, causal, groups, batch):
    """As the paper describes it: each group is padded in time and convolved on its own."""
    conv = TemporalConv(2, channels, group=2, causal=causal).double()
    x = torch.randn(batch, 2, 1 + 2 * groups, 5, 4, dtype=torch.float64)
    expected = []
    for start, stop in [(0, 1)] + [(1 + 2 * g, 3 + 2 * g) for g in range(groups)]:
        if causal:
            part = F.pad(x, (0, 0, 0, 0, 2, 0))[:, :, start : stop + 2]
        else:
            left = x[:, :, max(start - 1, 0)]
            part = torch.cat([left[:, :, None], x[:, :, start:stop], 0 * left[:, :, None]], dim=2)
        expected.append(F.conv3d(part, conv.weight, conv.bias, padding=(0, 1, 1)))
    for last in (False, True):
        chunk = Chunk(batch_size=batch, image=True, past={}, last=last)
        y = conv(rearrange(x, "b c t h w -> (b t) c h w"), chunk)
        y = rearrange(y, "(b t) c h w -> b c t h w", b=batch)
        assert_close(y, torch.cat(expected, dim=2), rtol=1e-12, atol=1e-12)
        assert bool(chunk.carry) != last  # after the last chunk nothing is kept


@pytest.mark.parametrize(("image", "kept"), [(True, [0, 1, 3, 5, 7]), (False, [0, 2, 4, 6])])
def test_before_time_is_halved_only_the_frames_that_stay_get_a_keyframe_half(image, kept):
    unit = KTCConv(4, 5, group=4, causal=False).double()
    x, past = torch.randn(2, 8 + image, 4, 3, 3, dtype=torch.float64), torch.randn(2, 1, 3, 3, 5)
    past = {} if image else {unit.motion.name: past.double()}
    results = []
    for unit.halved_next in (False, True):
        y = unit(x.flatten(0, 1), Chunk(batch_size=2, image=image, past=past))
        results.append(y.unflatten(0, (2, -1)))
    whole, some = results
    assert_close(some[:, :, 5:], whole[:, :, 5:], rtol=1e-12, atol=1e-12)
    assert_close(some[:, kept], whole[:, kept], rtol=1e-12, atol=1e-12)
    dropped = sorted({*range(8 + image)} - {*kept})
    assert not some[:, dropped, :5].any()
