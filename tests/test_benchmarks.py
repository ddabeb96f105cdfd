"""Every benchmark explains itself and runs, tiny; its figures are no matter here."""

import importlib
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import fault_chain, fault_commands, faults
from common.cli import parse
from data.importers import IMPORTERS
from latte import LatteConfig
from tests.builders.videos import write_barcode_video
from vae import VAEConfig, VideoVAE

FOLDER = Path(__file__).parents[1] / "benchmarks"
COMMANDS = sorted(f.stem for f in FOLDER.glob("*.py") if "\nif __name__ ==" in f.read_text())

TINY = {
    "data_speed": {
        "parts": ["decoding", "reading", "resuming", "memory"],  # the others take seconds
        **{"sizes": [[48, 64]], "latents": 16, "num_clips": 4, "samples": 99, "rounds": 1},
    },
    "evaluation": {"dimensions": [4], "num_clips": 8, "frames": 2, "size": 32, "repeats": 1},
    "latte_speed": {"frames": 2, "side": 4, "repeats": 1},
    "tiling": {"height": 32, "width": 48, "tile": 32, "overlaps": [[8, 0], [8, 8]]},
    "traffic": {
        **{"passes": ["encode"], "forms": ["eager"]},
        **{"dim": 8, "frames": 1, "height": 16, "width": 16},
    },
    "vae_savings": {"dim": 8, "repeats": 1},
}
"""Options that make a benchmark small."""
ELSEWHERE = {
    "comparators": "tests/test_comparators.py",
    "gpu_acceptance": "tests/test_gpu_acceptance.py",
    "faults": "below: its parts; a whole run takes minutes",
    "vae_speed": "tests/test_vae_plain.py: what it times and counts; a tiny run takes ten seconds",
}
"""Benchmarks that are run by other tests."""


def command_of(name):
    """Config class and function of a benchmark, as its last line gives them to `main`."""
    module = importlib.import_module(f"benchmarks.{name}")
    config, run = re.findall(r"main\((\w+), (\w+)\)", (FOLDER / f"{name}.py").read_text())[-1]
    return getattr(module, config), getattr(module, run)


def test_every_benchmark_is_tested():
    assert sorted([*TINY, *ELSEWHERE]) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_explains_its_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(command_of(name)[0], ["--help"])
    assert stop.value.code == 0
    assert "default: " in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves shards to the collector
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_tiny(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    options = TINY[name]
    if name == "latte_speed":
        small = partial(LatteConfig, hidden_size=32, depth=2, num_heads=2)
        monkeypatch.setattr(LatteConfig, "preset", lambda size, **values: small(**values))
    if name == "tiling":
        torch.manual_seed(0)
        model = VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
        VideoVAE(model).save_pretrained(tmp_path / "vae")
        write_barcode_video(tmp_path / "a.mp4", 5)
        options = {**options, "vae": str(tmp_path / "vae"), "video": str(tmp_path / "a.mp4")}
    config, run = command_of(name)
    run(parse(config, [f"--{name}={value}" for name, value in options.items()]))
    lines = capsys.readouterr().out.splitlines()
    assert any(re.search(r"\d", line) for line in lines)
    assert not any(re.search(r"\b(nan|inf)\b", line) for line in lines)


def test_faults_tries_every_campaign_as_often_as_asked(tmp_path):
    config = faults.Faults(out=tmp_path, kills=2, mutations=1, disks=0, starts=1, signals=0)
    assert list(faults.tries(config)) == [
        *(("kills", 0), ("kills", 1)),
        *(("mutations", 0), ("starts", 0)),
    ]


def test_faults_changes_the_configs_of_every_script_and_set():
    text = "".join((FOLDER / f"fault_{name}.py").read_text() for name in ("chain", "commands"))
    for script in (FOLDER.parent / "scripts").glob("*.py"):
        assert f'Command("{script.name}"' in text, script
    assert fault_commands.SETS.keys() | {"digits"} == IMPORTERS.keys()  # which are computed


def test_faults_tells_outputs_apart(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(f'{{"score": "{text}"}}')
    a, b, c = (fault_chain.contents(tmp_path / name) for name in "abc")
    assert not fault_chain.differences(a, b)
    assert fault_chain.differences(a, c)
    assert fault_chain.differences(a, {})
