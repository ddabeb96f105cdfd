"""C3D: its size, TGANv2's preprocessing, and the files its weights come in."""

import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from eval.features import c3d
from eval.features.c3d import C3D, ScriptedC3D, load_chainer

TINY_CONVS = {name: (3 if name == "conv1a" else 2, 2) for name in c3d.CONVS}
TINY_LINEARS = {"fc6": (2 * 4 * 4, 6), "fc7": (6, 6), "fc8": (6, 101)}


@pytest.fixture
def tiny(monkeypatch):
    """The same network with 2 channels: everything but the widths is C3D's."""
    monkeypatch.setattr(c3d, "CONVS", TINY_CONVS)
    monkeypatch.setattr(c3d, "LINEARS", TINY_LINEARS)


def chainer_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for name, (inputs, outputs) in {**TINY_CONVS, **TINY_LINEARS}.items():
        kernel = (3, 3, 3) if name.startswith("conv") else ()
        arrays[f"{name}/W"] = rng.normal(size=(outputs, inputs, *kernel)).astype(np.float32)
        arrays[f"{name}/b"] = rng.normal(size=outputs).astype(np.float32)
    return arrays


def test_size():
    with torch.device("meta"):
        model = C3D()
    assert sum(p.numel() for p in model.parameters()) == 78_409_573
    assert not model.training


def test_preprocessing_closed_form(tiny):
    model = C3D()
    mean = torch.rand(3, 16, 112, 112) * 255
    model.mean.copy_(mean)
    color = torch.tensor([-1.0, 0.25, 1.0])  # R, G, B
    result = model.preprocess(color.reshape(1, 3, 1, 1, 1).expand(1, 3, 16, 40, 60))
    bgr = color.flip(0).reshape(1, 3, 1, 1, 1)
    assert_close(result, 128 * bgr + 128 - mean, rtol=1e-5, atol=1e-4)


def test_resize_keeps_the_corners(tiny):
    model = C3D()
    video = torch.rand(1, 3, 16, 30, 50) * 2 - 1
    result = model.preprocess(video)
    corners = (..., [0, 0, -1, -1], [0, -1, 0, -1])
    assert_close(result[corners], 128 * video.flip(1)[corners] + 128, rtol=1e-5, atol=1e-4)


def test_chainer_files(tiny, tmp_path):
    arrays = chainer_arrays()
    np.savez(tmp_path / "weights.npz", **arrays)  # type: ignore[arg-type]
    mean = np.random.default_rng(1).uniform(0, 255, size=(3, 16, 128, 171))
    np.savez(tmp_path / "mean2.npz", mean=mean)
    model = load_chainer(tmp_path / "weights.npz", tmp_path / "mean2.npz")
    assert_close(model.mean, torch.from_numpy(mean[:, :, 8:120, 8:120]).float())
    assert_close(model.state_dict()["fc7.weight"].numpy(), arrays["fc7/W"])
    with torch.inference_mode():
        probabilities = model.probabilities(torch.zeros(2, 3, 16, 32, 32))
    assert probabilities.shape == (2, 101)
    assert_close(probabilities.sum(1), torch.ones(2))


def test_damaged_files_are_refused(tiny, tmp_path):
    np.savez(tmp_path / "mean2.npz", mean=np.zeros((3, 16, 128, 171)))
    np.savez(tmp_path / "short.npz", mean=np.zeros((3, 16)))
    arrays = chainer_arrays()
    np.savez(tmp_path / "weights.npz", **arrays)  # type: ignore[arg-type]
    del arrays["fc7/b"]
    np.savez(tmp_path / "incomplete.npz", **arrays)  # type: ignore[arg-type]
    whole = (tmp_path / "weights.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"incomplete.npz: .*fc7.bias"):
        load_chainer(tmp_path / "incomplete.npz", tmp_path / "mean2.npz")
    with pytest.raises(ValueError, match=r"short.npz: needs an array 'mean'"):
        load_chainer(tmp_path / "weights.npz", tmp_path / "short.npz")
    with pytest.raises(ValueError, match=r"cut.npz: not a readable .npz"):
        load_chainer(tmp_path / "cut.npz", tmp_path / "mean2.npz")
    with pytest.raises(ValueError, match="no such file"):
        load_chainer(tmp_path / "none.npz", tmp_path / "mean2.npz")


def test_other_input_is_refused(tiny):
    with pytest.raises(ValueError, match=r"17 frames.* C3D takes 16"):
        C3D()(torch.zeros(1, 3, 17, 8, 8))
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
        C3D()(torch.full((1, 3, 16, 8, 8), 200.0))


class MeanColor(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean(dim=(2, 3, 4))


def test_torchscript_gets_0_to_255(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(MeanColor()), tmp_path / "c3d_ucf101.pt")
    model = ScriptedC3D(tmp_path / "c3d_ucf101.pt")
    video = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 16, 4, 4)
    assert model.probabilities(video).tolist() == [[0, 128, 255]]
    (tmp_path / "other.pt").write_bytes(b"not a program")
    with pytest.raises(ValueError, match="not a readable TorchScript program"):
        ScriptedC3D(tmp_path / "other.pt")
