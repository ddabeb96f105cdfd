"""README's lines run as they stand, one after the other, on ten clips; the long ones cut down."""

import re
import shlex
import warnings
from pathlib import Path

import pytest

from tests.builders.commands import ROOT, run_script
from tests.builders.videos import write_barcode_video

NARROW = {"model.dim": 4, "model.num_blocks": 1, "model.channel_multipliers": [1, 1, 2, 2]}
SHORT = {"steps": 2, "global_batch_size": 2, "save_every": 2, "log_every": 1, "workers": 0}
TRAINING = {f"train.{name}": value for name, value in SHORT.items()}
FULL = {"train.micro_batch_size": None, "train.evaluate_every": None, "train.keep_every": None}
SMALL = {"data.height": 16, "data.width": 16}
TINY_LATTE = {"model.size": "custom", "model.hidden_size": 16, "model.depth": 2}
TINY_LATTE |= {"model.num_heads": 2, "train.folder": "runs/latte/ucf101_xl2"}
VAE = TRAINING | NARROW | SMALL
CUTS = {
    "Your own clips, in seven lines": {
        "make_shards.py": {"workers": 0},
        "train_vae.py": VAE,
        "cache_latents.py": {**SMALL, "clips_per_video": 1},
        "train_latte.py": TRAINING | TINY_LATTE | {"train.folder": "runs/small/latte"},
        "sample.py": {"num_clips": 2, "sampler.steps": 2},
        "report.py": {},
    },
    "A real data set, in seven lines": {
        "make_shards.py": {"workers": 0, "short_side": 16},
        "train_vae.py": {**VAE, **FULL, "train.precision": "no", "loss.perceptual": "none",
                         "held_out.height": 16, "held_out.width": 16},
        "cache_latents.py": {**SMALL, "workers": 0, "data.short_clips": "loop"},
        "train_latte.py": {**TRAINING, **TINY_LATTE, **FULL, "train.precision": "no"},
        "sample.py": {"num_clips": 2, "sampler.method": "ddim", "sampler.steps": 2},
    },
}  # fmt: skip
"""What is changed of each section's commands, to run in seconds."""


def commands(section: str) -> list[list[str]]:
    """The first block of commands of a section of README: script and arguments."""
    text = (ROOT / "README.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    block = re.search(r"(?:^    .*\n)+", text, re.MULTILINE)
    assert block is not None
    lines = [shlex.split(line) for line in block[0].splitlines()]
    starts = [
        next(i for i, word in enumerate(line) if word.startswith("scripts/")) for line in lines
    ]
    for line, start in zip(lines, starts, strict=True):
        assert line[:start] in (
            ["python"],
            ["accelerate", "launch", "--config_file", "configs/accelerate/default.yaml"],
        )
    return [line[start:] for line, start in zip(lines, starts, strict=True)]


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A folder to work in, with ten clips in two classes, some held out, and the configs."""
    for number in range(10):
        path = Path("ab"[number % 2]) / f"{number}.mp4"
        write_barcode_video(tmp_path / "videos" / path, 17 + number, shade=20 * number)
        if number < 2:
            write_barcode_video(tmp_path / "held_out" / path, 17, shade=20 * number)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("section", CUTS)
def test_the_lines_of_readme_run_one_after_the_other(section, clips):
    found = commands(section)
    assert len(found) == 7
    for script, *arguments in found:
        cuts = CUTS[section][Path(script).name]
        flags = [f"--{name}={'null' if v is None else v}" for name, v in cuts.items()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few clips
            assert run_script(Path(script).name, *arguments, *flags) == 0, (script, arguments)
    made = "runs/small/report.html" if "own" in section else "samples/clip-000001.mkv"
    assert (clips / made).stat().st_size > 0
