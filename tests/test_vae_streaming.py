"""Chunks of frame groups: flat memory, padding, refusals, 8x compression."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from common.measure import LiveMemory
from tests.builders.tiny_vae import LONG, TINY, make, video
from vae import ImageVAE, VAEConfig, VideoVAE, inputs

SMALL = VAEConfig(
    z_dim=2,
    dim=4,
    channel_multipliers=(1, 1, 1),
    num_blocks=1,
    temporal_downsample=(True, True),
)

MEASURE = f"""
import torch
from vae import VAEConfig, VideoVAE

def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

def chunks(frames, channels, side, size):
    yield torch.zeros(1, channels, 1, side, side)
    for _ in range((frames - 1) // size):
        yield torch.zeros(1, channels, size, side, side)

torch.set_num_threads(1)
model = VideoVAE({SMALL})
encode = lambda frames: model.stream_encode(chunks(frames, 3, 48, 64))
decode = lambda frames: model.stream_decode(chunks(1 + (frames - 1) // 4, 2, 12, 16))
for run in (encode, decode):
    next(run(1))
    for frames in (65, 1025):
        open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
        before = memory("VmRSS")
        assert sum(1 for _ in run(frames)) == 1 + (frames - 1) // 64
        print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_video_of_1025_frames_takes_the_memory_of_one_of_65():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # freed memory goes back at once
        capture_output=True,
        text=True,
        check=True,
    )
    encode, encode_long, decode, decode_long = map(int, done.stdout.split())  # kB
    assert min(encode, decode) > 15_000, "the measured part is too small to tell"
    assert encode_long < 1.1 * encode
    assert decode_long < 1.1 * decode


@pytest.mark.parametrize("config", [SMALL, VAEConfig.preset("baseline", dim=4, num_blocks=1)])
def test_streams_hold_the_same_tensors_however_long_they_are(config):
    model = VideoVAE(config)
    side = 2 * config.spatial_ratio
    peaks, held = [], []
    for groups in (4, 12):
        with LiveMemory() as live:
            videos = (torch.zeros(1, 3, 1 if i == 0 else 4, side, side) for i in range(groups))
            for _ in model.stream_encode(videos):
                pass
            for _ in model.stream_decode(
                torch.zeros(1, config.z_dim, 1, 2, 2) for _ in range(groups)
            ):
                held.append(live.now)
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]
    assert held[3] == held[-1]


@pytest.mark.parametrize(
    "config", [TINY, LONG, VAEConfig.preset("baseline", dim=4, num_blocks=1)], ids=str
)
def test_what_is_kept_between_chunks_is_no_view_of_more(config):
    model = VideoVAE(config)
    side, ratio = config.spatial_ratio, config.temporal_ratio
    with torch.no_grad():
        kept = model.encode_step(torch.zeros(1, 3, 1 + 3 * ratio, side, side))[1]
        kept |= model.decode_step(torch.zeros(1, config.z_dim, 4, 1, 1))[1]
    assert kept
    for name, value in kept.items():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), name


def test_streaming_needs_no_gradients_and_keeps_none():
    model = VideoVAE(TINY)
    (posterior,) = model.stream_encode([video(5).float()])
    (frames,) = model.stream_decode([posterior.mean])
    assert not posterior.mean.requires_grad
    assert not frames.requires_grad
    assert torch.is_grad_enabled()


def test_an_empty_stream_gives_nothing():
    assert list(VideoVAE(TINY).stream_encode([])) == []
    assert list(VideoVAE(TINY).stream_decode([])) == []


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([4], r"chunk 0 of the stream has 4 frames, but it needs 1 \+ 4n. Use 1 or 5"),
        ([1, 5], r"chunk 1 of the stream has 5 frames, but it needs 4n. Use 4 or 8"),
        ([5, 4, 2], r"chunk 2 of the stream has 2 frames, but it needs 4n. Use 4\."),
    ],
)
def test_chunks_that_are_no_whole_groups_are_refused(frames, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        list(model.stream_encode(video(t, 8, 8) for t in frames))


def test_a_stream_may_not_change_its_size():
    model = make()
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 8, 16\).* \(1, 3, 1, 8, 8\)"):
        list(model.stream_encode([video(1, 8, 8), video(4, 8, 16)]))
    latents = [torch.zeros(1, 4, 1, 2, 2), torch.zeros(2, 4, 1, 2, 2)]
    with pytest.raises(ValueError, match="only t may change"):
        list(model.stream_decode(latents))
    with pytest.raises(ValueError, match="height 12"):
        list(model.stream_encode([video(1, 12, 8)]))


@settings(max_examples=10, deadline=None)
@given(
    config=st.sampled_from([TINY, LONG, SMALL, VAEConfig.preset("ktc", dim=2, num_blocks=1)]),
    t=st.integers(1, 26),
    h=st.integers(1, 17),
    w=st.integers(1, 17),
    chunk_groups=st.integers(1, 5),
)
def test_any_size_padded_and_chunked_equals_the_whole(config, t, h, w, chunk_groups):
    model, x = make(config), video(t, h, w, b=2)
    with torch.no_grad():
        whole = model.encode(inputs.pad(x, config))
        posterior = model.encode(x, pad=True, chunk_groups=chunk_groups)
        assert_close(posterior.moments, whole.moments)
        y = model.decode(whole.mean)[:, :, :t, :h, :w]
        assert_close(model.decode(posterior.mean, size=(t, h, w), chunk_groups=chunk_groups), y)
        assert_close(model.reconstruct(x, pad=True, chunk_groups=chunk_groups), y)


def test_chunks_give_the_gradients_of_the_whole():
    model, gradients = make(), []
    for chunk_groups in (None, 1):
        model.zero_grad()
        x = video(9, 8, 8).requires_grad_()
        z = model.encode(x, chunk_groups=chunk_groups).mean
        model.decode(z, chunk_groups=chunk_groups).square().mean().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    for whole, chunked in zip(*gradients, strict=True):
        assert_close(whole, chunked)


def test_eightfold_compression_with_32_channels_trains():
    model = make(LONG)
    x = video(17, 8, 8)
    y, posterior = model(x, torch.randn(1, 32, 3, 1, 1, dtype=torch.float64))
    assert y.shape == x.shape
    (y.abs().mean() + posterior.kl().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_edges_are_repeated():
    x = torch.arange(6.0).view(1, 1, 2, 1, 3).expand(1, 3, 2, 1, 3)
    padded = inputs.pad(x, TINY)
    assert padded.shape == (1, 3, 5, 8, 8)
    assert_close(padded[0, 0, :, 7, 0], torch.tensor([0.0, 3, 3, 3, 3]))
    assert_close(padded[0, 0, 0, 5], torch.tensor([0.0, 1, 2, 2, 2, 2, 2, 2]))
    assert_close(padded[:, :, :2, :1, :3], x)
    assert inputs.pad(padded, TINY) is padded


@pytest.mark.parametrize("size", [(5, 8, 9), (1, 8, 8), (6, 8, 8), (5, 0, 8)])
def test_cropping_to_a_size_that_was_not_padded_is_refused(size):
    with pytest.raises(ValueError, match=r"from a video of \(5, 8, 8\)"):
        make().decode(torch.zeros(1, 4, 2, 1, 1), size=size)


def test_sizes_that_do_not_fit_point_to_padding():
    with pytest.raises(ValueError, match=r"Use 5 or 9. Or give pad=True"):
        make().encode(video(6, 8, 8))


def test_an_image_vae_runs_chunk_by_chunk_too():
    model = make(TINY.image())
    assert isinstance(model, VideoVAE)
    x = video(7, 8, 8)
    with torch.no_grad():
        assert_close(model.encode(x, chunk_groups=2).moments, model.encode(x).moments)
        parts = model.stream_encode(x.split([3, 1, 3], dim=2))
        assert_close(torch.cat([p.mean for p in parts], dim=2), model.encode(x).mean)
    assert ImageVAE(TINY.image()).config.temporal_ratio == 1
