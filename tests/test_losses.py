"""The loss of Eq. 5 by hand, and LPIPS from a weights file."""

import lpips
import pytest
import torch
import torchvision
from torch.testing import assert_close

from common import perceptual
from common.measure import LiveMemory
from common.perceptual import load_lpips
from common.published_weights import LPIPS_VGG
from common.weights import find_weights
from vae import DiagonalGaussian
from vae.losses import VAELoss, VAELossConfig


def constant_error(size: int, error: float = 0.25, t: int = 5):
    video = torch.zeros(2, 3, t, size, size)
    latent = (2, 4, 2, size // 8, size // 8)
    posterior = DiagonalGaussian(torch.ones(latent), torch.zeros(latent))  # KL 0.5 each
    return video + error, video, posterior


def test_eq_5_by_hand():
    loss = VAELoss(VAELossConfig(perceptual="none", kl_weight=0.1))
    values = loss(*constant_error(16))
    mae = 3 * 16 * 16 * 0.25  # a sum over the image
    kl = 4 * 2 * 2 * 2 * 0.5 / 5  # of a clip, shared by its frames
    assert_close(values["loss"].item(), 256 * 256 / (16 * 16) * (mae + 0.1 * kl))
    assert_close(values["mae"].item(), 0.25)
    assert_close(values["kl"].item(), 0.5)


def test_the_loss_does_not_depend_on_the_resolution():
    loss = VAELoss(VAELossConfig(perceptual="none", kl_weight=0.1))
    losses = [loss(*constant_error(size))["loss"] for size in (16, 32, 64)]
    assert_close(losses[0], losses[1])
    assert_close(losses[0], losses[2])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Random weights in the format of torchvision's file, as far as LPIPS reads it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "alexnet.pth"
    features = torchvision.models.alexnet().features.state_dict()
    torch.save({f"features.{name}": value for name, value in features.items()}, path)
    return path


def test_lpips_takes_its_backbone_from_the_file(backbone):
    loss = load_lpips("alex", backbone)
    state = torch.load(backbone, weights_only=True)
    assert_close(loss.lpips.net.slice1[0].weight, state["features.0.weight"], rtol=0, atol=0)
    x, y = (torch.rand(2, 3, 3, 64, 64) * 2 - 1 for _ in range(2))
    values = loss(x, y)
    assert_close(loss(x, x), torch.zeros(2, 3))
    assert values[1, 2] > 0
    assert isinstance(loss.lpips, lpips.LPIPS)
    assert_close(values[1, 2], loss.lpips(x[1:, :, 2], y[1:, :, 2]).squeeze())


def test_chunks_of_frames_give_the_distances_and_gradients_of_the_whole(backbone, monkeypatch):
    loss = load_lpips("alex", backbone).double()
    x, y = (torch.rand(2, 3, 5, 48, 40, dtype=torch.float64) * 2 - 1 for _ in range(2))
    x.requires_grad_()
    frames = [video.transpose(1, 2).flatten(0, 1) for video in (x, y)]
    expected = loss.lpips(*frames).view(2, 5)
    weight = torch.rand(2, 5, dtype=torch.float64)
    wanted = torch.autograd.grad((weight * expected).sum(), x)[0]
    for frames_at_once in (1, 3, 100):
        monkeypatch.setattr(perceptual, "CHUNK_PIXELS", frames_at_once * 48 * 40)
        distances = loss(x, y)
        assert_close(distances, expected, rtol=1e-12, atol=0)
        found = torch.autograd.grad((weight * distances).sum(), x)[0]
        assert_close(found, wanted, rtol=1e-9, atol=1e-15)


def test_nothing_of_the_backbone_is_kept_for_the_backward_pass(backbone):
    loss = load_lpips("alex", backbone)
    x = torch.zeros(1, 3, 6, 64, 64, requires_grad=True)
    with LiveMemory() as memory:
        value = loss(x, torch.ones_like(x)).sum()
        kept = memory.now
    assert kept < 1.1 * x.nbytes  # the gradient at x
    assert memory.peak > 4 * x.nbytes
    assert value.requires_grad


def test_lpips_in_bfloat16_is_near_that_in_float32(backbone):
    config = VAELossConfig(perceptual="alex", perceptual_weights=str(backbone))
    video = torch.rand(1, 3, 2, 64, 64) * 2 - 1
    found, gradients = [], []
    for bf16 in (False, True):
        x = (0.5 * video).requires_grad_()
        values = VAELoss(config, lpips_bf16=bf16).reconstruction(x, video)
        found.append(values["lpips"])
        gradients.append(torch.autograd.grad(values["lpips"], x)[0])
        assert values["lpips"].dtype == gradients[-1].dtype == torch.float32
    assert 0 < abs(found[0] - found[1]) < 0.02 * found[0]
    assert (gradients[0] - gradients[1]).norm() < 0.2 * gradients[0].norm()


def test_lpips_counts_once_per_value_of_the_image_and_reaches_the_reconstruction(backbone):
    config = VAELossConfig(perceptual="alex", perceptual_weights=str(backbone), kl_weight=0)
    loss = VAELoss(config)
    video = torch.rand(1, 3, 2, 64, 64) * 2 - 1
    _, _, posterior = constant_error(64)
    reconstruction = (0.5 * video).requires_grad_()
    values = loss(reconstruction, video, posterior)
    expected = 256 * 256 * 3 * (values["mae"] + values["lpips"])
    assert_close(values["loss"], expected)
    values["loss"].backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in loss.parameters())


def test_missing_and_wrong_backbones_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(LPIPS_VGG.variable, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth.*loss.perceptual"):
        find_weights(LPIPS_VGG)
    wrong = tmp_path / "wrong.pth"
    torch.save({"a": torch.zeros(1)}, wrong)
    with pytest.raises(ValueError, match=r"features\.0\.weight is missing"):
        load_lpips("alex", wrong)
    page = tmp_path / "page.pth"
    page.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"page\.pth: not a readable checkpoint"):
        load_lpips("alex", page)
    torch.save(torchvision.models.alexnet().state_dict(), wrong)
    with pytest.raises(ValueError, match=r"wrong\.pth: not torchvision's vgg"):
        load_lpips("vgg", wrong)
    with pytest.raises(ValueError, match="kl_weight"):
        VAELossConfig(kl_weight=-1)
