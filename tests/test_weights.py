"""Finding published weights, and the I3D presets that use them."""

import subprocess
import warnings
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from common import weights
from common.files import sha256_file
from common.published_weights import ALL, C3D, C3D_MEAN, I3D, LPIPS_ALEX
from common.weights import find_weights, git_blob_hash
from eval.features.extractors import load_c3d, load_i3d
from eval.features.i3d import InceptionI3D
from tests.builders.vectors import load_case


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No weights on this machine are found by accident."""
    folders = [tmp_path / "weights", tmp_path / "cache", tmp_path / "hub"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(weights, "cache_folders", lambda: folders)
    for published in ALL:
        monkeypatch.delenv(published.variable, raising=False)
    return folders


def test_missing_weights_are_explained(nowhere):
    with pytest.raises(ValueError, match=r"no i3d_pretrained_400.pt found") as caught:
        find_weights(I3D)
    message = str(caught.value)
    for part in ("fvd/videogpt", "IVVAE_I3D", str(nowhere[0]), "--download", "train_classifier.py"):
        assert part in message
    assert "\n" not in message
    with pytest.raises(ValueError, match=r"elsewhere.pt: no such file"):
        find_weights(I3D, "elsewhere.pt")


def test_path_goes_before_variable_before_cache(nowhere, tmp_path, monkeypatch):
    known = replace(I3D, blob=None)
    for path in (nowhere[0] / I3D.file, tmp_path / "variable.pt", tmp_path / "given.pt"):
        path.write_bytes(path.name.encode())
    assert find_weights(known).path == nowhere[0] / I3D.file
    monkeypatch.setenv("IVVAE_I3D", str(tmp_path / "variable.pt"))
    assert find_weights(known).path.name == "variable.pt"
    given = find_weights(known, tmp_path / "given.pt")
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


@pytest.mark.parametrize("published", ALL, ids=lambda published: published.file)
def test_every_file_says_what_it_is_and_what_can_be_done_without_it(published):
    with pytest.raises(ValueError, match=r"no .* found") as caught:
        find_weights(published)
    message = str(caught.value)
    for part in (published.file, published.source, published.variable, published.without):
        assert part in message
    assert "://" not in message  # the source in words; --download knows the address
    assert published.url is None or published.url.startswith("https://")


def test_nothing_is_downloaded_unless_told_to(nowhere, tmp_path):
    (tmp_path / "there.pt").write_bytes(b"the weights")
    there = (tmp_path / "there.pt").as_uri()
    known = replace(I3D, url=there, blob=git_blob_hash(tmp_path / "there.pt"))
    with pytest.raises(ValueError, match=r"no i3d_pretrained_400.pt found"):
        find_weights(known)
    with pytest.raises(ValueError, match=r"other.pt: no such file"):  # a named file is never made
        find_weights(known, tmp_path / "other.pt", download=True)
    found = find_weights(known, download=True)
    assert found.path == nowhere[1] / I3D.file
    assert found.path.read_bytes() == b"the weights"
    assert found.verified
    assert find_weights(known).path == found.path


def test_a_download_that_is_not_the_published_file_is_not_kept(nowhere, tmp_path):
    (tmp_path / "page.html").write_text("<html>moved</html>")
    moved = replace(I3D, url=(tmp_path / "page.html").as_uri())
    with pytest.raises(ValueError, match=r"not .* i3d_pretrained_400.pt any more"):
        find_weights(moved, download=True)
    gone = replace(I3D, url=(tmp_path / "nothing").as_uri())
    with pytest.raises(ValueError, match=r"could not be downloaded.*by hand from"):
        find_weights(gone, download=True)
    assert list(nowhere[1].iterdir()) == []


def test_c3d_is_downloaded_with_its_mean_and_stays_unverified(nowhere, tmp_path, monkeypatch):
    urls = []
    monkeypatch.setattr(weights, "_fetch", lambda url, path, _: urls.append(url) or path.touch())
    with pytest.raises(ValueError, match="not a readable"):
        load_c3d(download=True)
    assert [url.rpartition("/")[2] for url in urls] == ["conv3d_deepnetA_ucf.npz", "mean2.npz"]
    assert all(find_weights(w).verified is None for w in (C3D, C3D_MEAN))


def test_lpips_backbones_are_known_by_the_first_digits_of_their_hash(nowhere):
    file = nowhere[2] / LPIPS_ALEX.file
    file.write_bytes(b"other weights")
    assert find_weights(LPIPS_ALEX, allow_unknown=True).verified is False
    ours = replace(LPIPS_ALEX, sha256=sha256_file(file)[:8])
    assert find_weights(ours).verified
