"""What the VAE refuses, and what it must not refuse."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.builders.tiny_vae import TINY, make, video
from vae import VideoVAE
from vae.inputs import PIXEL_LIMIT


def changed(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x[0, 1, -1, 3, 5] = value
    return x


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    model, x, z = make(), changed(video(5), value), torch.zeros(1, 4, 2, 2, 2)
    with pytest.raises(ValueError, match=r"video with values .*finite values"):
        model.encode(x)
    with pytest.raises(ValueError, match="video with values"):
        list(model.stream_encode([video(1), x[:, :, 1:]]))
    z[0, 3, 1, 1, 1] = value
    for decode in (model.decode, model.decode_branches, lambda z: list(model.stream_decode([z]))):
        with pytest.raises(ValueError, match=r"latent with values .* need finite values"):
            decode(z)


@pytest.mark.parametrize("x", [video(5) * 127.5 + 127.5, changed(video(5), -2.01)])
def test_pixels_of_another_scale_are_refused(x):
    with pytest.raises(ValueError, match=r"values from .* to .*Bring 0\.\.255"):
        make().encode(x)


def test_pixels_of_0_to_255_show_their_range():
    x = torch.arange(5 * 3 * 64.0).view(1, 3, 5, 8, 8) % 256
    with pytest.raises(ValueError, match="video with values from 0 to 255"):
        VideoVAE(TINY).encode(x)


def test_no_bicubic_resize_is_refused():
    """The worst case, a checkerboard between two pixels, overshoots by 1.375 squared."""
    board = torch.ones(2, 2).repeat(8, 8)
    board[::2, 1::2] = board[1::2, ::2] = -1
    worst = 0.0
    for size in (17, 24, 32, 40, 160):
        for antialias in (False, True):
            y = F.interpolate(board[None, None], (size, size), mode="bicubic", antialias=antialias)
            worst = max(worst, y.abs().max().item())
    assert worst < 1.375**2 < PIXEL_LIMIT
    make().encode(changed(video(5), 1.89))


def test_other_float_types_are_converted():
    model, x = VideoVAE(TINY).eval(), video(5)
    with torch.no_grad():
        expected = model.encode(x.float())
        posterior = model.encode(x)
        assert posterior.mean.dtype == torch.float32
        assert_close(posterior.moments, expected.moments, rtol=0, atol=0)
        y = model.decode(posterior.mean.double())
        assert_close(y, model.decode(posterior.mean), rtol=0, atol=0)


def test_inputs_on_another_device_are_refused():
    model = VideoVAE(TINY)
    with pytest.raises(ValueError, match=r"on meta, .* on cpu"):
        model.encode(torch.zeros(1, 3, 1, 8, 8, device="meta"))
    with pytest.raises(ValueError, match=r"the input is on meta"):
        model.decode(torch.zeros(1, 4, 1, 1, 1, device="meta"))


def test_meta_tensors_give_shapes():
    with torch.device("meta"):
        model, x = VideoVAE(TINY), torch.zeros(1, 3, 9, 16, 24)
    assert model.decode(model.encode(x).mean).shape == x.shape


@pytest.mark.parametrize("shape", [(0, 3, 5, 8, 8), (1, 3, 0, 8, 8), (1, 3, 5, 8, 0)])
def test_empty_videos_are_refused(shape):
    with pytest.raises(ValueError, match="not empty"):
        make().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 4, 0, 2, 2), (4, 2, 2, 2), (1, 8, 2, 2, 2)])
def test_latents_of_other_shapes_are_refused(shape):
    for call in (make().decode, lambda z: list(make().stream_decode([z]))):
        with pytest.raises(ValueError, match=r"need b 4 t h w, float, not empty"):
            call(torch.zeros(shape))


def test_what_is_no_tensor_and_no_count_is_refused():
    model = make()
    with pytest.raises(ValueError, match=r"type ndarray: .* b 3 t h w"):
        model.encode(video(1).numpy())
    with pytest.raises(ValueError, match=r"type list: .* b 4 t h w"):
        model.decode([0.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"chunk_groups=1\.5 .* 1, or None"):
        model.encode(video(1), chunk_groups=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"size=\(8, 8\) .*\(1, 8, 8\)"):
        model.decode(torch.zeros(1, 4, 1, 1, 1), size=(8, 8))


def test_training_checks_sizes_but_does_not_wait_for_values():
    model = make()
    noise = torch.zeros(1, 4, 2, 2, 3)
    y, _ = model(changed(video(5), float("nan")), noise)
    assert y.isnan().any()  # left to the trainer, which stops at such a loss
    with pytest.raises(ValueError, match="6 frames"):
        model(video(6), noise)
    with pytest.raises(ValueError, match="need b 3 t h w"):
        model(video(5)[:, :2], noise)
