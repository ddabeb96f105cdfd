"""The project's own files agree with each other."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from common.cli import parse
from data.shards.pack_video import ShardConfig
from scripts import cache_latents, demo, eval_reconstruction
from scripts.sample import Sample
from scripts.train_classifier import TrainClassifier
from scripts.train_latte import TrainLatte
from scripts.train_vae import TrainVAE

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("common", "data", "engine", "eval", "latte", "vae")


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [line for group in project["optional-dependencies"].values() for line in group]
    return [Requirement(line) for line in project["dependencies"] + extras]


def test_every_requirement_is_pinned_to_a_version_it_allows():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if "==" in line)
    for requirement in requirements():
        pin = pins.get(requirement.name.lower().replace("_", "-"))
        assert pin is not None, f"{requirement.name} has no pin"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow {pin}"


def test_conda_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert pip == "pip"
    assert packages["pip"] == ["-c constraints.txt", "-e .[dev,compare]"]
    allowed = Requirement(f"python{PROJECT['project']['requires-python']}").specifier
    assert allowed.contains(python.removeprefix("python=") + ".0")


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_ours_and_listed(name):
    module = importlib.import_module(name)
    assert Path(module.__file__).parent == ROOT / name  # type: ignore[arg-type]
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in (ROOT / name).rglob("__init__.py")}
    assert {".".join(f.relative_to(ROOT).parts) for f in folders} <= listed
    assert distribution(PROJECT["project"]["name"])


FORBIDDEN = {
    "common": {"engine", "vae", "latte", "data", "eval", "scripts"},
    "latte": {"vae", "data", "eval", "scripts"},
    "vae": {"latte", "data", "eval", "scripts"},
    "data": {"vae", "latte", "eval", "scripts"},
    "eval": {"vae", "latte", "scripts"},
    "engine": {"vae", "latte", "data", "eval", "scripts"},
}


def imported(file: Path) -> set[str]:
    """Full names of what a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_what_they_may(package):
    for file in (ROOT / package).rglob("*.py"):
        for name in imported(file):
            assert name.split(".")[0] not in FORBIDDEN[package], f"{file} imports {name}"


FOLDERS = {
    "data/video": (),
    "data/importers": ("data.video",),
    "data/shards": ("data.importers", "data.video"),
    "data/clips": ("data.shards", "data.video", "engine"),
    "data/latents": ("data", "engine"),
    "eval/clips": ("data",),
    "eval/metrics": ("eval.features.preprocess",),
    "eval/features": ("data", "eval.clips", "eval.metrics"),
    "eval/report": ("data.video",),
    "eval/published": ("eval.report.items",),
    "eval/protocols": (
        *("data", "engine", "eval.clips", "eval.features", "eval.metrics", "eval.published"),
    ),
    "eval/results": (
        *("data.video", "engine.run_folder"),
        *("eval.clips", "eval.protocols.measurement", "eval.published", "eval.report"),
    ),
    "eval/experiments": ("data.video", "engine.run_folder", "eval.report", "eval.results"),
}
"""Folders of packages, and what else than `common` and themselves they may import."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_what_they_may(folder):
    allowed = (folder.replace("/", "."), "common", *FOLDERS[folder])
    for file in (ROOT / folder).rglob("*.py"):
        for name in imported(file):
            if name.split(".")[0] in PACKAGES:
                fits = any(f"{name}.".startswith(f"{each}.") for each in allowed)
                assert fits, f"{file} imports {name}"


@pytest.mark.parametrize("command", ["eval_fvd", "eval_is", "make_shards"])
def test_commands_that_do_not_train_start_without_what_training_needs(command):
    slow = {"torch.distributed.fsdp", "torch._inductor", "sympy", "scipy.stats", "timm"}  # seconds
    code = f"import sys, scripts.{command}; print(*sorted({slow} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert ran.stdout.decode().split() == []


def test_no_test_imports_another():
    """What tests share is in tests/builders."""
    for file in (ROOT / "tests").rglob("*.py"):
        for name in imported(file):
            assert not re.search(r"(^|\.)(test_|conftest)", name), f"{file} imports {name}"


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "vae").glob("*.yaml")), ids=str)
def test_vae_configs_are_valid_and_chained(file):
    config = parse(TrainVAE, ["--config", str(file)])
    assert config.train.folder == f"runs/vae/{{model}}/{file.stem}"
    if config.init_from and "/" in config.init_from:  # else another project's weights
        before = file.parent / f"{Path(config.init_from).parent.name}.yaml"
        assert parse(TrainVAE, ["--config", str(before)]).model == config.model


DEMO = {
    "image_vae": TrainVAE,
    "video_vae": TrainVAE,
    "latents": cache_latents.CacheLatents,
    "classifier": TrainClassifier,
    "latte": TrainLatte,
    "latte_ddpm": TrainLatte,
    "samples": Sample,
    "samples_ddpm": Sample,
    "reconstruct": eval_reconstruction.EvalReconstruction,
}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_demo_configs_are_valid_and_complete(kind):
    assert set(DEMO) == {*demo.stages(""), *demo.stages("_ddpm")}
    for name, command in DEMO.items():
        parse(command, ["--config", str(ROOT / "configs" / "demo" / kind / f"{name}.yaml")])
    packing = yaml.safe_load((ROOT / "configs" / "demo" / kind / "data.yaml").read_text())
    ShardConfig(**packing)
