"""PSNR, SSIM, information preservation, positions in the frame group, flicker, and their meter."""

import json
import math

import numpy as np
import pytest
import torch
from einops import rearrange
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.testing import assert_close

from eval.metrics.reconstruction import (
    ReconstructionMeter,
    information_preservation,
    psnr,
    ssim,
    ssim_by_position,
)


def pair(
    b: int = 2, t: int = 5, h: int = 24, w: int = 20, noise: float = 0.2
) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    video = torch.rand(b, 3, t, h, w, generator=random) * 2 - 1
    error = noise * torch.randn(video.shape, generator=random)
    return [video, (video + error).clamp(-1, 1)]


def measured(video: torch.Tensor, reconstruction: torch.Tensor) -> dict:
    meter = ReconstructionMeter()
    meter.update(video, reconstruction)
    return meter.compute()


def images(video: torch.Tensor) -> np.ndarray:
    return rearrange((video.double() + 1) / 2, "b c t h w -> b t h w c").numpy()


def test_ssim_equals_scikit_image():
    video, reconstruction = pair()
    values = ssim(video, reconstruction)
    for b, t in np.ndindex(*values.shape):
        expected = structural_similarity(
            images(video)[b, t],
            images(reconstruction)[b, t],
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        assert values[b, t].item() == pytest.approx(expected, abs=1e-6)


def test_psnr_equals_scikit_image():
    video, reconstruction = pair()
    values = psnr(video, reconstruction)
    for b, t in np.ndindex(*values.shape):
        expected = peak_signal_noise_ratio(
            images(video)[b, t], images(reconstruction)[b, t], data_range=1
        )
        assert values[b, t].item() == pytest.approx(expected, abs=1e-9)


def test_reconstructions_are_clamped_before_they_are_compared():
    video = torch.ones(1, 3, 5, 16, 16)
    assert_close(psnr(video, 1.5 * video), psnr(video, video))


def test_perfect_frame_counts_100_db_and_leaves_the_others_alone():
    video, reconstruction = pair(b=1, t=5)
    reconstruction[:, :, 2] = video[:, :, 2]
    values = psnr(video, reconstruction)[0]
    others = torch.tensor([0, 1, 3, 4])
    assert values[2] == 100
    assert_close(values[others], psnr(*pair(b=1, t=5))[0, others])
    assert_close(ssim(video, reconstruction)[0, 2].item(), 1.0)


def test_pooled_psnr_is_that_of_the_mean_squared_error():
    video = torch.full((1, 3, 5, 16, 16), 0.5)
    reconstruction = video.clone()
    reconstruction[:, :, :4] += 0.2  # squared error in [0, 1]: 0.01, 20 dB
    reconstruction[:, :, 4] += 0.02  # 0.0001, 40 dB
    result = measured(video, reconstruction)
    assert_close(result["psnr_by_frame"], [20.0] * 4 + [40.0], rtol=1e-5, atol=0)
    expected = -10 * math.log10((4 * 0.01 + 0.0001) / 5)
    assert result["psnr_pooled"] == pytest.approx(expected, rel=1e-5)


def test_information_preservation_by_hand():
    video = torch.tensor([1.0, -0.5, 0.0, 0.5]).reshape(1, 1, 1, 2, 2)
    reconstruction = torch.tensor([0.5, -0.5, 0.5, 0.5]).reshape(1, 1, 1, 2, 2)
    value = information_preservation(video, reconstruction)
    assert value["[-1,1]"] == pytest.approx(1 - 1.0 / 2.0)  # |x| sums to 1 + 0.5 + 0 + 0.5
    assert value["[0,1]"] == pytest.approx(1 - 0.5 / 2.5)  # 1 + 0.25 + 0.5 + 0.75
    with pytest.raises(ValueError, match=r"zero everywhere in \[-1,1\]"):
        information_preservation(torch.zeros(1, 3, 5, 16, 16), torch.zeros(1, 3, 5, 16, 16))


def test_information_preservation_is_a_ratio_of_sums_over_the_data_set():
    bright, dark = torch.full((1, 3, 5, 16, 16), 0.8), torch.full((1, 3, 5, 16, 16), 0.1)
    meter = ReconstructionMeter()
    meter.update(bright, bright - 0.1)
    meter.update(dark, dark - 0.1)
    value = meter.compute()["information_preservation"]["[-1,1]"]
    assert value == pytest.approx(1 - 0.2 / 0.9)
    assert value != pytest.approx(1 - (0.1 / 0.8 + 0.1 / 0.1) / 2)


@pytest.mark.parametrize(
    ("cells", "margin"),
    [
        ([0.8923, 0.8986, 0.9191, 0.9056], 0.0268),
        ([0.8923 + 0.0089, 0.8986 + 0.0063, 0.9191 + 0.0014, 0.9056 + 0.0007], 0.0268 - 0.0075),
        ([0.9027, 0.9103, 0.9203, 0.9111], 0.0176),
        ([0.9027 + 0.0066, 0.9103 + 0.0064, 0.9203 - 0.0012, 0.9111 + 0.0008], 0.0176 - 0.0078),
    ],
    ids=["baseline", "baseline+GCConv", "KTC", "KTC+GCConv"],
)
def test_margins_of_table_5(cells, margin):
    groups = torch.tensor(cells, dtype=torch.float64).repeat(4)
    wobble = torch.tensor([0.01, -0.01, 0.02, -0.02], dtype=torch.float64).repeat_interleave(4)
    frames = torch.cat([torch.tensor([0.1], dtype=torch.float64), groups + wobble])  # 17, 0 dropped
    scores = ssim_by_position(frames[None], group=4)
    assert_close(scores.positions, cells)
    assert scores.margin == pytest.approx(margin, abs=1e-9)


def test_flicker_tells_group_borders_from_the_inside():
    video = torch.full((1, 3, 9, 16, 16), 0.5)
    steady = measured(video, video + 0.3)["flicker"]
    assert steady == pytest.approx({"border": 0, "inside": 0}, abs=1e-7)
    offset = torch.tensor([0.0, 0.2, 0.2, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0])  # of each frame
    by_group = measured(video, video + offset.reshape(1, 1, 9, 1, 1))["flicker"]
    assert by_group == pytest.approx({"border": 0.1, "inside": 0}, rel=1e-6)
    meter = ReconstructionMeter(1)  # groups of one frame have no inside
    meter.update(video, video + 0.3)
    assert meter.compute()["flicker"] == pytest.approx({"border": 0, "inside": 0}, abs=1e-7)


def test_meter_does_not_depend_on_the_batches():
    video, reconstruction = pair(b=4, t=9)
    whole, parts = ReconstructionMeter(), ReconstructionMeter()
    whole.update(video, reconstruction)
    for start, stop in ((0, 1), (1, 4)):
        parts.update(video[start:stop], reconstruction[start:stop])
    a, b = whole.compute(), parts.compute()
    json.dumps(a, allow_nan=False)
    assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (a["videos"], a["frames"], a["perfect_frames"]) == (4, 9, 0)


def test_meter_equals_the_functions():
    video, reconstruction = pair(b=3, t=9)
    meter = ReconstructionMeter()
    rows = meter.update(video, reconstruction)
    result = meter.compute()
    assert_close(rows["psnr"], psnr(video, reconstruction).mean(1).tolist())
    assert_close(rows["ssim"], ssim(video, reconstruction).mean(1).tolist())
    assert_close(result["psnr"], psnr(video, reconstruction).mean().item())
    error = (reconstruction.double() - video.double()) / 2
    assert_close(result["psnr_pooled"], -10 * error.square().mean().log10().item())
    steps = error.diff(dim=2).abs().mean(dim=(0, 1, 3, 4)).view(2, 4)  # a border, then 3 inside
    expected = {"border": steps[:, 0].mean().item(), "inside": steps[:, 1:].mean().item()}
    assert_close(result["flicker"], expected)
    assert_close(result["psnr_by_frame"], psnr(video, reconstruction).mean(0).tolist())
    assert_close(result["ssim"], ssim(video, reconstruction).mean().item())
    assert_close(
        result["ssim_by_position"], ssim_by_position(ssim(video, reconstruction))._asdict()
    )
    assert_close(
        result["information_preservation"], information_preservation(video, reconstruction)
    )


def test_meter_counts_perfect_frames():
    video, reconstruction = pair(t=5)
    reconstruction[0, :, 1] = video[0, :, 1]
    meter = ReconstructionMeter()
    meter.update(video, reconstruction)
    assert meter.compute()["perfect_frames"] == 1


def test_bad_input_is_refused():
    video, reconstruction = pair()
    with pytest.raises(ValueError, match="of one shape"):
        psnr(video, reconstruction[:1])
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
        ssim(127.5 * (video + 1), reconstruction)
    with pytest.raises(ValueError, match="spans"):
        psnr(video * torch.nan, reconstruction)
    with pytest.raises(ValueError, match="reconstruction is not finite"):
        psnr(video, reconstruction * torch.inf)
    with pytest.raises(ValueError, match="uint8"):
        psnr(video.to(torch.uint8), reconstruction)
    with pytest.raises(ValueError, match="below SSIM's 11 pixels"):
        ssim(video[..., :10], reconstruction[..., :10])
    with pytest.raises(ValueError, match=r"4 frames, but frame groups need 1 \+ 4n"):
        ssim_by_position(torch.zeros(1, 4))


def test_meter_refuses_unequal_and_missing_batches():
    meter = ReconstructionMeter()
    with pytest.raises(ValueError, match="no videos"):
        meter.compute()
    meter.update(*pair(t=5))
    with pytest.raises(ValueError, match="9 frames after batches of 5"):
        meter.update(*pair(t=9))
    assert meter.compute()["videos"] == 2
