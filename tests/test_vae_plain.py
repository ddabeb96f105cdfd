"""The whole model against the plain form of its description: equal results, fewer operations."""

import pytest
import torch
from torch.testing import assert_close

from benchmarks.vae_plain import Plain
from benchmarks.vae_speed import count_flop, tasks
from tests.test_vae import make, video
from vae import VAEConfig, VideoVAE
from vae.complexity import count_macs

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
