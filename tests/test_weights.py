"""Finding published weights, and the I3D presets that use them."""

import subprocess
import warnings
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from eval import weights
from eval.features.extractors import load_i3d
from eval.features.i3d import InceptionI3D
from eval.weights import I3D, find_weights, git_blob_hash
from tests.vectors import load_case


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No weights on this machine are found by accident."""
    folders = [tmp_path / "weights", tmp_path / "cache"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(weights, "cache_folders", lambda: folders)
    for variable in ("IVVAE_I3D", "IVVAE_I3D_TORCHSCRIPT"):
        monkeypatch.delenv(variable, raising=False)
    return folders


def test_missing_weights_are_explained(nowhere):
    with pytest.raises(ValueError, match=r"no i3d_pretrained_400.pt found") as caught:
        find_weights(I3D, environment={})
    message = str(caught.value)
    for part in ("TATS", "IVVAE_I3D", str(nowhere[0]), "train_classifier.py"):
        assert part in message
    assert "\n" not in message
    with pytest.raises(ValueError, match=r"elsewhere.pt: no such file"):
        find_weights(I3D, "elsewhere.pt")


def test_path_goes_before_variable_before_cache(nowhere, tmp_path):
    known = replace(I3D, blob=None)
    for path in (nowhere[0] / I3D.file, tmp_path / "variable.pt", tmp_path / "given.pt"):
        path.write_bytes(path.name.encode())
    environment = {"IVVAE_I3D": str(tmp_path / "variable.pt")}
    assert find_weights(known, environment={}).path == nowhere[0] / I3D.file
    assert find_weights(known, environment=environment).path.name == "variable.pt"
    given = find_weights(known, tmp_path / "given.pt", environment=environment)
    assert given.path.name == "given.pt"
    assert given.verified is None


def test_git_blob_hash_is_git_s(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"some bytes\n" * 1000)
    command = ["git", "hash-object", "--no-filters", str(path)]
    expected = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert git_blob_hash(path) == expected


def test_other_weights_are_refused_or_renamed(tmp_path):
    path = tmp_path / "i3d.pt"
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"not the published i3d_pretrained_400.pt"):
        find_weights(I3D, path)
    assert find_weights(I3D, path, allow_unknown=True).verified is False
    with pytest.raises(ValueError, match="not the state dict of I3D"):
        load_i3d("i3d_tf", path, allow_unknown=True)
    torch.save({"logits.conv3d.bias": torch.zeros(400)}, path)
    with pytest.raises(ValueError, match=r"not the state dict of I3D.*Missing key"):
        load_i3d("i3d_tf", path, allow_unknown=True)


def test_presets_load_the_public_state_dict(tmp_path, monkeypatch):
    path = tmp_path / "i3d.pt"
    torch.save(load_case("i3d").weights(), path)
    unverified = load_i3d("i3d_tf", path, allow_unknown=True)
    assert (unverified.score, unverified.resize) == ("fvd_unverified", "stretch")
    monkeypatch.setattr("eval.features.extractors.I3D", replace(I3D, blob=git_blob_hash(path)))
    port = load_i3d("i3d_videogpt", path)
    assert (port.score, port.resize) == ("fvd", "crop")
    assert isinstance(port.network, InceptionI3D)
    assert port.network.get_submodule("Mixed_3b.b0.bn").eps == 1e-5
    with pytest.raises(ValueError, match="8 frames, but i3d_videogpt needs 9"):
        port.features(torch.zeros(1, 3, 8, 224, 224))


class Echo(torch.nn.Module):
    def forward(
        self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool
    ) -> torch.Tensor:
        flags = torch.tensor([float(rescale), float(resize), float(return_features)])
        return torch.cat([x.mean(dim=(1, 2, 3, 4)), flags])[None]


def test_torchscript_resizes_by_itself_and_takes_our_range(tmp_path):
    path = tmp_path / "i3d_torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Echo()), path)
    extractor = load_i3d("i3d_torchscript", path, allow_unknown=True)
    features = extractor.features(torch.full((1, 3, 9, 8, 8), 0.5))
    assert_close(features, torch.tensor([[0.5, 0.0, 1.0, 1.0]]))
