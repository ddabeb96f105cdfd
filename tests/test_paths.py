"""A file where a folder is due, and a folder where a file is: one line, exit code 2."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch

from engine.config import TrainConfig
from eval.features.classifier import ClassifierConfig, ClipClassifier
from latte.config import LatteOptions
from scripts import train_latte
from tests.builders.commands import run_script
from tests.builders.packed import pack
from vae import VAEConfig, VideoVAE

pytestmark = pytest.mark.filterwarnings("ignore:.*(stored lossily|biased upwards)")

CLIPS = {"frames": 5, "height": 16, "width": 16}
LATTE = {"size": "custom", "hidden_size": 16, "depth": 2, "num_heads": 2}


def flags(values, prefix=""):
    return [f"--{prefix}{name}={value}" for name, value in values.items()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Valid inputs of the commands, a file and a folder."""
    root = tmp_path_factory.mktemp("made")
    pack(root, [20, 20, 20, 20])
    torch.manual_seed(0)
    model = VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
    VideoVAE(model).save_pretrained(root / "vae")
    ClipClassifier(ClassifierConfig(num_classes=2, width=8)).save_pretrained(root / "features")
    assert run_script("cache_latents.py", *flags(caching(root, root / "latents"))) == 0
    train = TrainConfig(folder=str(root / "run"), steps=1, global_batch_size=2)
    options = LatteOptions(**LATTE, class_conditional=False)
    train_latte.run(
        train_latte.TrainLatte(train=train, latents=str(root / "latents"), model=options)
    )
    for name in ("file", "file.json", "file.html"):
        (root / name).write_text("")
        (root / f"folder_{name}").mkdir()
    return root


def caching(root, out):
    clips = {f"data.{name}": value for name, value in CLIPS.items()}
    return {"vae": root / "vae", "data.folder": root / "shards", "out": out, "workers": 0, **clips}


def commands(root):
    """Valid arguments of each command."""
    out, shards, latents = root / "out", root / "shards", root / "latents"
    train = {"train.folder": out, "train.steps": 1, "train.global_batch_size": 2}
    clips = {"data.folder": shards, **{f"data.{name}": value for name, value in CLIPS.items()}}
    classifier = {"classifier": root / "features", "device": "cpu", "frames": 5, "num_clips": 4}
    classifier["stride_real"] = 1
    return {
        "train_vae": {**train, **clips, "loss.perceptual": "none", "model.dim": 8},
        "train_latte": {
            **{**train, "latents": latents, "model.class_conditional": "false"},
            **{f"model.{name}": value for name, value in LATTE.items()},
        },
        "train_classifier": {**train, **clips, "channels": 8},
        "cache_latents": caching(root, out),
        "sample": {
            **{"out": out, "latte": root / "run" / "export", "vae": root / "vae"},
            **{"num_clips": 1, "sampler.steps": 2, "sampler.method": "ddim"},
        },
        "eval_fvd": {"out": root / "out.json", "real": shards, "fake": shards, **classifier},
        "eval_is": {
            **{"out": root / "out.json", "fake": shards, "device": "cpu"},
            **{"classifier": root / "features", "frames": 5},
        },
        "eval_reconstruction": {
            **{"out": out, "data": shards, "vae": root / "vae", **CLIPS},
            **{"lpips": "none", "rfvd": "none"},
        },
        "export_latents": {"out": out, "latents": latents},
        "inspect_cache": {"out": out, "latents": latents, "vae": root / "vae"},
        "verify_data": {"report": root / "out.json", "data": shards, "workers": 0},
        "convert_checkpoint": {"out": out, "source": root / "vae", "to": "released"},
        "make_shards folder": {"out": out, "root": root / "videos", "workers": 0},
        "report": {"out": root / "out.html", "results": root / "run"},
        "demo": {"configs": root},
    }


FOLDERS = [
    *(("train_vae", each) for each in ("train.folder", "data.folder", "init_from")),
    *(("train_latte", each) for each in ("train.folder", "latents", "init_from", "held_out")),
    *(("train_classifier", each) for each in ("train.folder", "data.folder", "test")),
    *(("cache_latents", each) for each in ("out", "data.folder", "vae")),
    *(("sample", each) for each in ("out", "latte", "vae", "mp4", "gif", "first_frames")),
    *(("eval_fvd", each) for each in ("real", "fake", "classifier", "cache")),
    *(("eval_is", each) for each in ("fake", "real", "classifier", "cache")),
    *(("eval_reconstruction", each) for each in ("out", "data", "vae")),
    *(("export_latents", each) for each in ("out", "latents")),
    *(("inspect_cache", each) for each in ("out", "latents", "vae")),
    ("verify_data", "data"),
    *(("make_shards folder", each) for each in ("out", "root")),
    ("demo", "configs"),
]


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize(("command", "option"), FOLDERS)
def test_a_file_where_a_folder_is_due_is_one_line(root, command, option, place, capsys):
    check(root, command, {option: root / place}, capsys)


FILES = [
    ("eval_fvd", "out", "file.json"),
    ("eval_is", "out", "file.json"),
    ("verify_data", "report", "file.json"),
    ("report", "out", "file.html"),
    ("convert_checkpoint", "out", "file"),
]


@pytest.mark.parametrize("place", ["folder_{}", "file/{}"])
@pytest.mark.parametrize(("command", "option", "name"), FILES)
def test_a_folder_where_a_file_is_due_is_one_line(root, command, option, name, place, capsys):
    check(root, command, {option: root / place.format(name)}, capsys)


OUTPUTS = {
    **dict.fromkeys(("train_vae", "train_latte", "train_classifier"), "train.folder"),
    **dict.fromkeys(("cache_latents", "sample", "eval_reconstruction", "export_latents"), "out"),
    **{"inspect_cache": "out", "eval_fvd": "out", "verify_data": "report"},
}


@pytest.mark.parametrize("command", OUTPUTS)
def test_a_read_only_file_system_is_one_line(root, command, capsys, monkeypatch):
    place, mkdir = str(root / "read_only"), os.mkdir

    def refuse(path, *arguments, **options):
        if os.fspath(path).startswith(place):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", refuse)  # as root, the mode of a folder keeps nobody out
    option = OUTPUTS[command]
    name = Path(commands(root)[command][option]).name
    match = f"{place}.*: Read-only file system. .*another folder"
    check(root, command, {option: f"{place}/{name}"}, capsys, match=match)


@pytest.mark.parametrize("command", ["eval_fvd", "eval_is"])
def test_a_result_that_cannot_be_written_is_refused_before_anything_is_read(root, command, capsys):
    nowhere = {"fake": root / "nowhere", "classifier": root / "nowhere", "out": root / "videos"}
    check(root, command, nowhere, capsys, match=f"out={root}/videos: is a folder")


@pytest.mark.parametrize(
    ("command", "option"), [("verify_data", "report"), ("report", "out"), ("inspect_cache", "card")]
)
def test_a_folder_where_a_file_is_due_is_refused_before_the_work(root, command, option, capsys):
    place = {option: root / "videos"}
    check(root, command, place, capsys, match=f"{option}={root}/videos: is a folder")


def check(root, command, changed, capsys, *, match=None):
    script, *choice = command.split()
    before = sorted(path for path in root.rglob("*") if path.name != "__pycache__")
    code = run_script(f"{script}.py", *choice, *flags(commands(root)[command] | changed), cwd=root)
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert code == 2, last
    assert last.startswith("error: ")
    assert re.search(match or str(root), last)
    assert sorted(root.rglob("*")) == before
