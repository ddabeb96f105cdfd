"""Released files to from_pretrained folders and back, with the real command."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from common import weights
from common.cli import parse
from common.files import read_json
from scripts.convert_checkpoint import ConvertCheckpoint, run
from tests.builders.tiny_vae import TINY
from tests.builders.vectors import load_case, uniform
from vae import ImageVAE, VAEConfig, VideoVAE
from vae.convert import to_released
from vae.released import SCALE_AND_SHIFT, released_config


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file as the authors release them, with the weights of the reference vectors."""
    path = tmp_path_factory.mktemp("released") / "ivvae_z4_dim8.pth"
    torch.save(load_case("ivvae_z4_dim8").weights(), path)
    return path


def convert(source, out, **options) -> str:
    return run(ConvertCheckpoint(source=str(source), out=str(out), **options))


def test_a_released_file_becomes_a_folder_that_gives_the_released_outputs(released, tmp_path):
    assert "z_dim 4, dim 8" in convert(released, tmp_path / "vae")
    model = VideoVAE.from_pretrained(tmp_path / "vae")
    assert model.config == VAEConfig(z_dim=4, dim=8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vae"]
    case = load_case("ivvae_z4_dim8")
    info = case.info["cases"][1]
    with torch.no_grad():
        mean = model.encode(uniform(info["input_seed"], info["input_shape"])).mean
        assert_close(mean, case.outputs["mean.1"], rtol=1e-5, atol=1e-5)
        assert_close(model.decode(mean), case.outputs["recon.1"], rtol=1e-5, atol=1e-5)


def test_a_released_name_is_looked_for_where_all_weights_are(released, tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("weights", "cache", "hub")]
    monkeypatch.setattr(weights, "cache_folders", lambda: folders)
    monkeypatch.delenv("IVVAE_IVVAE_Z4_DIM64", raising=False)
    with pytest.raises(ValueError, match=r"no ivvae_z4_dim64.pth .* \(429 MB\)"):
        convert("ivvae_z4_dim64.pth", tmp_path / "vae")
    folders[0].mkdir()
    (folders[0] / "ivvae_z4_dim64.pth").write_bytes(released.read_bytes())
    assert "z_dim 4, dim 8" in convert("ivvae_z4_dim64.pth", tmp_path / "vae")


def test_there_and_back_keeps_every_bit(released, tmp_path):
    convert(released, tmp_path / "vae")
    assert "362 tensors" in convert(tmp_path / "vae", tmp_path / "back.pth")
    before, back = (torch.load(p, weights_only=True) for p in (released, tmp_path / "back.pth"))
    assert before.keys() == back.keys()
    assert all(torch.equal(before[name], back[name]) for name in before)
    convert(tmp_path / "back.pth", tmp_path / "again")
    files = [tmp_path / folder / "model.safetensors" for folder in ("vae", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_doing_it_again_changes_nothing_and_something_else_is_kept(released, tmp_path):
    folder, file = tmp_path / "vae", tmp_path / "back.pth"
    for source, out in ((released, folder), (folder, file)):
        convert(source, out)
        before = {path: path.stat().st_mtime_ns for path in (out, *out.rglob("*"))}
        assert "already holds" in convert(source, out)
        assert before == {path: path.stat().st_mtime_ns for path in (out, *out.rglob("*"))}
    VideoVAE(VAEConfig(z_dim=4, dim=8)).save_pretrained(tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for source, out in (
        (released, tmp_path / "other"),
        (released, tmp_path / "mine"),
        (tmp_path / "other", file),
        (tmp_path / "other", folder),
    ):
        with pytest.raises(ValueError, match="holds something else"):
            convert(source, out)
    with pytest.raises(ValueError, match="holds something else"):
        convert(released, folder, latent_mean=1.0)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize(("sizes", "scaling"), SCALE_AND_SHIFT.items(), ids=str)
def test_sizes_and_latent_scale_of_the_released_files(sizes, scaling):
    (z_dim, dim), (scale, shift) = sizes, scaling
    with torch.device("meta"):
        state = to_released(VideoVAE(VAEConfig(z_dim=z_dim, dim=dim)))
    assert len(state) == 362
    config = released_config(state)
    assert (config.z_dim, config.dim) == sizes
    with torch.device("meta"):
        model = VideoVAE(config)
    z = torch.linspace(-3, 3, z_dim).view(1, -1, 1, 1, 1)
    assert_close(model.normalize(z), (z - shift) * scale)
    assert_close(model.denormalize(model.normalize(z)), z)


def test_the_scale_of_other_sizes_can_be_given(released, tmp_path):
    convert(released, tmp_path / "vae", latent_mean=0.5, latent_std=2.0)
    values = read_json(tmp_path / "vae" / "config.json")
    assert (values["latent_mean"], values["latent_std"]) == ([0.5], [2.0])
    with pytest.raises(ValueError, match="not part of a released file"):
        ConvertCheckpoint(source="vae", out="x.pth", latent_mean=0.0)
    with pytest.raises(ValueError, match=r"latent_std=-1\.0 must be above 0"):
        convert(released, tmp_path / "bad", latent_std=-1.0)
    assert not (tmp_path / "bad").exists()


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("it-ran",))


def test_files_that_are_no_plain_weights_are_refused(released, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = released.read_bytes()
    Path("short.pth").write_bytes(whole[: len(whole) // 2])
    Path("empty.pth").write_bytes(b"")
    Path("text.pth").write_text("<html>not found</html>")
    Path("evil.pth").write_bytes(pickle.dumps({"w": Evil()}, protocol=2))
    torch.save({"w": Evil()}, "evil2.pth")
    torch.save([torch.zeros(1)], "list.pth")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, "nested.pth")
    cases = {
        "short.pth": "plain weights, or damaged",
        "empty.pth": "plain weights, or damaged",
        "text.pth": "plain weights, or damaged",
        "evil.pth": "plain weights, or damaged",
        "evil2.pth": "plain weights, or damaged",
        "list.pth": "holds a list, not weights by name",
        "nested.pth": "'state_dict' is a dict, not a tensor",
        "missing.pth": "no such file. Get one of ivvae_z4_dim64.pth",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
            convert(name, "out")
    assert not Path("it-ran").exists()
    assert not Path("out").exists()


def test_other_weights_are_refused_and_every_difference_is_named(released, tmp_path):
    weights = torch.load(released, weights_only=True)
    changes = {
        "other": ({"encoder.w": torch.zeros(3)}, "not a released IV-VAE: it has no encoder.conv1"),
        "wide": ({**weights, "conv2.conv_2d.weight": torch.zeros(2)}, r"has shape \(2,\)"),
        "more": ({**weights, "extra": torch.zeros(3)}, "z_dim=4, dim=8: unexpected extra"),
        "less": (
            {key: value for key, value in weights.items() if key != "conv1.conv_3d.bias"},
            r"missing conv1\.conv_3d\.bias",
        ),
    }
    for name, (state, message) in changes.items():
        path = tmp_path / f"{name}.pth"
        torch.save(state, path)
        with pytest.raises(ValueError, match=f"{name}.pth: .*{message}"):
            convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_that_no_released_file_can_hold_are_refused(tmp_path):
    VideoVAE(TINY).save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="differ in z_dim and dim only"):
        convert(tmp_path / "tiny", tmp_path / "out.pth")
    ImageVAE(TINY.image()).save_pretrained(tmp_path / "image")
    with pytest.raises(ValueError, match="holds a ImageVAE, not a VideoVAE"):
        convert(tmp_path / "image", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_the_command_line_says_what_it_did(released, tmp_path):
    done = run(parse(ConvertCheckpoint, ["--source", str(released), "--out", str(tmp_path / "a")]))
    assert done.startswith(f"{tmp_path / 'a'}: VideoVAE, z_dim 4, dim 8, latent_mean 0")
    back = ["--source", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--to", "released"]
    assert "note shift = mean and scale = 1 / std" in run(parse(ConvertCheckpoint, back))
    with pytest.raises(ValueError, match="no such file"):
        run(parse(ConvertCheckpoint, ["--source", "nowhere.pth", "--out", "x"]))
