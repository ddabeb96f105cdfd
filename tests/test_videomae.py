"""VideoMAE: the output of another implementation, public checkpoints' layout, refusals."""

import pytest
import torch
from torch.testing import assert_close

from eval.features.extractors import load_fvd_extractor
from eval.features.video_transformer import TransformerShape
from eval.features.videomae import VideoMAE, load_videomae
from tests.builders.vectors import load_case, uniform

CASE = load_case("videomae")


def checkpoint(path, **outer) -> None:
    """A fine-tuned checkpoint as its authors save it, with the classifier's last layer."""
    state = CASE.weights() | {"head.weight": torch.zeros(174, 384), "head.bias": torch.zeros(174)}
    torch.save({**outer, "module": state}, path)


def test_reference_output(tmp_path):
    checkpoint(tmp_path / "vit.pth", epoch=3)
    network = load_videomae(tmp_path / "vit.pth")
    video = uniform(CASE.info["input_seed"], CASE.info["input_shape"])
    with torch.inference_mode():
        output = network(video)
    expected = CASE.outputs["output"]
    assert ((output - expected).norm() / expected.norm()).item() < 1e-5
    extractor = load_fvd_extractor("videomae", tmp_path / "vit.pth")
    assert (extractor.score, extractor.published) == ("fvd_videomae", False)
    assert_close(extractor.features(video), output)
    with pytest.raises(ValueError, match="15 frames, but videomae needs 16"):
        extractor.features(video[:, :, :15])
    with pytest.raises(ValueError, match="VideoMAE needs b 3 16 224 224"):
        network(torch.zeros(1, 3, 17, 224, 224))


def test_the_giant_model_of_version_2():
    shape = TransformerShape(dim=1408, depth=40, hidden=6144, patch=14, tubelet=2)
    with torch.device("meta"):
        model = VideoMAE(shape)
    key_biases = 40 * 1408  # which are 0 here, and not in the checkpoint
    assert sum(p.numel() for p in model.parameters()) == 1_011_610_752 + key_biases
    assert model.positions.shape == (2048, 1408)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "page.pth").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"page.pth: not a readable checkpoint"):
        load_videomae(tmp_path / "page.pth")
    torch.save({"module": {"conv.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth: not a fine-tuned VideoMAE"):
        load_videomae(tmp_path / "other.pth")
    state = CASE.weights()
    del state["blocks.1.attn.v_bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part.pth.*blocks.1.attn.v_bias"):
        load_videomae(tmp_path / "part.pth")
    with pytest.raises(ValueError, match="no vit_g_hybrid_pt_1200e"):
        load_fvd_extractor("videomae")
