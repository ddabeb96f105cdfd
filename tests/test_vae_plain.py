"""The whole model against the plain form of its description: equal results, fewer operations."""

from unittest.mock import patch

import pytest
import torch
from torch.testing import assert_close

from benchmarks.shared import count_flop
from benchmarks.vae_plain import Plain
from benchmarks.vae_speed import tasks
from tests.builders.tiny_vae import make, video
from vae import VAEConfig, VideoVAE
from vae.complexity import count_macs
from vae.convs import Chunk, TemporalConv

CONFIG = VAEConfig(z_dim=4, dim=4)


@pytest.mark.parametrize(("frames", "batch"), [(1, 1), (17, 1), (9, 2)])
def test_every_saving_together_gives_the_results_of_the_plain_form(frames, batch):
    model, x = make(CONFIG), video(frames, 16, 24, b=batch)
    # in a step on an image alone the plain form gives some weights no gradient, ours gives zero
    for task in tasks(model, x, x)[: 2 if frames == 1 else 3]:
        with torch.set_grad_enabled(task.learns):
            ours, plain = task.ours(), [t.clone() for t in task.plain()]
        for a, b in zip(ours, plain, strict=True):
            assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_video_in_chunks_gives_the_results_of_the_plain_form():
    model, x = make(CONFIG), video(17, 16, 8, b=2)
    with torch.no_grad():
        moments = Plain(model).encode(x)
        assert_close(model.encode(x, chunk_groups=1).moments, moments, rtol=1e-10, atol=1e-10)
        z = moments[:, :4]
        y = model.decode(z, chunk_groups=3)
        assert_close(y, Plain(model).decode(z), rtol=1e-10, atol=1e-10)


def test_the_plain_form_does_what_is_counted_and_ours_an_eighth_less():
    """Of the 11.8 % of the encoder and 13.8 % of the decoder that the spec's savings leave out."""
    with torch.device("meta"):  # nothing is computed
        model, x = VideoVAE(VAEConfig()), torch.empty(1, 3, 17, 256, 256)
    encode, decode, _ = tasks(model, x, x)
    counts = [
        2 * (m.convolution + m.attention) for m in count_macs(VideoVAE, model.config, 17, 256, 256)
    ]
    for task, plain, saved in ((encode, counts[0], 0.117), (decode, counts[1], 0.132)):
        assert count_flop(task.plain, learns=False) == plain
        assert round(1 - count_flop(task.ours, learns=False) / plain, 3) == saved


@pytest.mark.parametrize("temporal", ["group", "causal"])
def test_neighbors_without_writing_in_place_give_the_same_results_and_gradients(temporal):
    """The form that torch.compile gets, in chunks, where one gives to the next."""
    torch.manual_seed(0)
    group = {"group": 4, "causal": 2}[temporal]
    conv = TemporalConv(3, 5, group=group, causal=temporal == "causal").double()
    first, second = (torch.randn(2 * (1 + 4), 3, 4, 4).double(), torch.randn(8, 3, 4, 4).double())

    def run() -> list[torch.Tensor]:
        chunk = Chunk(batch_size=2, image=True, past={})
        y = conv(first, chunk)
        z = conv(second, Chunk(batch_size=2, image=False, past=chunk.carry, last=True))
        weights = torch.linspace(0.5, 2, y.numel()).view_as(y).double()
        gradients = torch.autograd.grad(
            (y * weights).sum() + z.square().sum(), list(conv.parameters())
        )
        return [y, z, *gradients]

    in_place = run()
    with patch("torch.compiler._is_compiling_flag", True):
        functional = run()
    for a, b in zip(in_place, functional, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)
