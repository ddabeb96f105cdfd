"""The doctor's screen on folders with published, other and missing files."""

from dataclasses import replace
from pathlib import Path

import pytest

from common import machine, weights
from common.cli import parse
from common.published_weights import ALL, COMPARATORS, I3D, LPIPS_ALEX
from eval.features.extractors import load_i3d
from scripts import doctor
from vae.registry import COMPARATORS as REGISTERED
from vae.released import SCALE_AND_SHIFT


def screen(capsys, *arguments: str) -> list[str]:
    doctor.run(parse(doctor.Doctor, list(arguments)))
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    found = [tmp_path / "weights", tmp_path / "cache", tmp_path / "hub"]
    for module in (weights, doctor):
        monkeypatch.setattr(module, "cache_folders", lambda: found)
    for published in ALL:
        monkeypatch.delenv(published.variable, raising=False)
    found[0].mkdir()
    return found


def test_every_file_has_a_line_that_says_how_to_get_it(folders, tmp_path, capsys):
    lines = screen(capsys, f"--folder={tmp_path}")
    assert len(lines) <= 45  # one screen
    text = "\n".join(lines)
    for part in ("torch 2", "cuDNN", "h264", "GB free", "diffusers", str(folders[0])):
        assert part in text
    for published in ALL:
        (line,) = (line for line in lines if f" {published.file} (" in line)
        assert line.lstrip().startswith("missing")
        assert published.variable in line
        assert published.source in line
        assert f"{published.size:.0f} MB" in line
        assert ("missing +" in line) == (published.url is not None)


def test_files_are_found_where_the_commands_find_them(folders, tmp_path, capsys, monkeypatch):
    (folders[0] / I3D.file).write_bytes(b"published")
    known = replace(I3D, blob=weights.git_blob_hash(folders[0] / I3D.file))
    monkeypatch.setattr(doctor, "ALL", (known, LPIPS_ALEX, COMPARATORS["wan"]))
    other = tmp_path / "other.pth"
    other.write_bytes(b"something else")
    monkeypatch.setenv("IVVAE_ALEXNET", str(other))
    (folders[0] / "wan").mkdir()
    (folders[0] / COMPARATORS["wan"].file).write_bytes(b"unknown hash")
    lines = screen(capsys)[-6:-3]
    assert [line.split("  ")[1].strip() for line in lines] == ["verified", "OTHER FILE", "found"]
    for line, path in zip(lines, (folders[0] / I3D.file, other, folders[0] / "wan"), strict=True):
        assert str(path) in line
    # the file that the screen calls another is refused by the command, by name
    (folders[0] / I3D.file).write_bytes(b"changed")
    assert any("OTHER FILE" in line and I3D.file in line for line in screen(capsys))
    with pytest.raises(ValueError, match=r"weights/i3d_pretrained_400.pt: not"):
        load_i3d()


def test_every_model_of_others_is_listed():
    files = {published.file for published in ALL}
    assert files >= {f"ivvae_z{z_dim}_dim{dim}.pth" for z_dim, dim in SCALE_AND_SHIFT}
    assert set(COMPARATORS) == set(REGISTERED)
    assert len({published.file for published in ALL}) == len(ALL)


def test_a_folder_that_is_not_there_is_refused(capsys):
    with pytest.raises(ValueError, match="folder=nowhere: no such folder"):
        screen(capsys, "--folder=nowhere")


def test_disk_of_a_folder_that_is_not_made_yet(tmp_path):
    assert "free" in machine.disk(tmp_path / "a" / Path("b"))
