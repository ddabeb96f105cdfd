"""Hub ids: pushing, loading from the local cache without a network, what goes wrong."""

import json
import shutil
import time

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from tests.builders.tiny_vae import TINY, make
from vae import ImageVAE, VideoVAE, weights_hash
from vae.comparators.cv_vae import CVVAE

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out, holding lab/tiny-vae, the hash of its weights, and no
    network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--lab--tiny-vae"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    model = make().float()
    model.save_pretrained(snapshot)
    blobs.mkdir()
    for i, file in enumerate(sorted(snapshot.iterdir())):
        shutil.move(file, blobs / f"{i:040x}")
        file.symlink_to(f"../../blobs/{i:040x}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path, weights_hash(model)


def test_a_hub_id_is_loaded_from_the_cache(hub_cache):
    cache, expected = hub_cache
    for options in ({}, {"revision": COMMIT}, {"local_files_only": True}):
        model = VideoVAE.from_pretrained("lab/tiny-vae", cache_dir=cache, **options)
        assert model.config == TINY
        assert weights_hash(model) == expected
        assert not model.training


@pytest.mark.parametrize(
    ("source", "options"),
    [("lab/other-vae", {}), ("lab/tiny-vae", {"revision": "v2"}), ("not a hub id", {})],
)
def test_what_is_not_within_reach_says_so_in_one_line(hub_cache, source, options):
    with pytest.raises(ValueError, match=r"no VideoVAE here, .* put config.json") as error:
        VideoVAE.from_pretrained(source, cache_dir=hub_cache[0], **options)
    assert str(error.value).startswith(f"{source}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("load", [VideoVAE.from_pretrained, CVVAE.from_official])
def test_without_a_network_nothing_is_tried_again(load, tmp_path, monkeypatch):
    closed = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", closed)

    def sleep(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s before it asks again")

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(ValueError, match=r"hub does not answer: .* config\.json"):
        load("lab/other-vae", cache_dir=tmp_path)


def test_a_hub_id_of_another_class_is_refused(hub_cache):
    with pytest.raises(ValueError, match=r"lab/tiny-vae: .* VideoVAE, not .* ImageVAE"):
        ImageVAE.from_pretrained("lab/tiny-vae", cache_dir=hub_cache[0])


def test_pushing_uploads_what_from_pretrained_reads(tmp_path, monkeypatch):
    calls = {}

    def create_repo(self, repo_id, **options):
        calls["repo"] = (repo_id, options["private"])
        return type("Url", (), {"repo_id": repo_id})

    def upload_folder(self, *, repo_id, folder_path, commit_message, **options):
        calls["upload"] = (repo_id, commit_message)
        shutil.copytree(folder_path, tmp_path / "uploaded")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    model = make().float()
    model.push_to_hub("lab/tiny-vae", private=True, commit_message="first weights")
    assert calls == {"repo": ("lab/tiny-vae", True), "upload": ("lab/tiny-vae", "first weights")}
    uploaded = VideoVAE.from_pretrained(tmp_path / "uploaded")
    assert weights_hash(uploaded) == weights_hash(model)
    values = json.loads((tmp_path / "uploaded" / "config.json").read_text())
    assert values["model_class"] == "VideoVAE"
    assert values["z_dim"] == 4
    card = (tmp_path / "uploaded" / "README.md").read_text()
    assert "video-vae" in card
