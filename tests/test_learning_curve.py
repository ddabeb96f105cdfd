"""The learning curve: what is trained, sampled and scored, and what a second run does."""

from dataclasses import replace

import pytest
import torch

from common import stages
from common.files import read_json
from data.clips.dataset import PackedClips
from engine.run_folder import read_log
from eval.features.classifier import ClassifierConfig, ClipClassifier
from latte.samplers import SamplerConfig
from scripts import cache_latents, learning_curve
from scripts.learning_curve import LearningCurve
from tests.builders.commands import run_stage_here
from tests.builders.packed import pack
from vae import VAEConfig, VideoVAE

TRAIN = """
train: {{folder: x, steps: 4, global_batch_size: 2, learning_rate: 1.0e-2, save_every: 3}}
latents: {root}/latents
vae: {root}/vae
model: {{size: custom, hidden_size: 16, depth: 2, num_heads: 2, class_conditional: true}}
"""
SAMPLES = """
latte: x
vae: {root}/vae
out: x
num_clips: 2
sampler: {{method: ddim, steps: 2, guidance: 2.0}}
"""


@pytest.fixture
def curve(tmp_path):
    """Settings of a tiny curve, with all that it needs."""
    shards = pack(tmp_path, [18, 20])
    torch.manual_seed(0)
    VideoVAE(
        VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
    ).save_pretrained(tmp_path / "vae")
    data = PackedClips(folder=str(shards), frames=17, height=16, width=16)
    places = {"vae": str(tmp_path / "vae"), "out": str(tmp_path / "latents")}
    cache_latents.run(cache_latents.CacheLatents(data=data, **places, workers=0))
    ClipClassifier(ClassifierConfig(num_classes=2, width=8)).save_pretrained(tmp_path / "features")
    (tmp_path / "train.yaml").write_text(TRAIN.format(root=tmp_path))
    (tmp_path / "samples.yaml").write_text(SAMPLES.format(root=tmp_path))
    return LearningCurve(
        folder=tmp_path / "curve",
        train=tmp_path / "train.yaml",
        samples=tmp_path / "samples.yaml",
        classifier=str(tmp_path / "features"),
        reference=str(shards),
        percents=(0, 50, 100),
        seeds=(0, 1),
        full=SamplerConfig(method="ddpm", steps=3, guidance=2.0),
        fast=SamplerConfig(method="ddim", steps=2, guidance_interval=(0.0, 0.5), guidance=2.0),
    )


@pytest.fixture
def calls(monkeypatch):
    """The commands that ran, each in this process."""
    done = []

    def call(command):
        script = command[1].rpartition("/")[2]
        done.append(script)
        return run_stage_here(command)

    monkeypatch.setattr(stages, "call", call)
    return done


def test_the_curve_of_two_seeds(curve, calls):
    learning_curve.run(curve)
    parts = {"0 new", "50 raw", "50 ema", "100 raw", "100 ema", "full", "fast"}
    scored = ["eval_fvd.py", "eval_is.py"] * len(parts)
    assert calls == (["train_latte.py"] + ["sample.py"] * len(parts) + scored) * 2
    result = read_json(curve.folder / "learning_curve.json")
    assert set(result["scores"]) == parts
    assert all(set(runs) == {"0", "1"} for runs in result["scores"].values())
    assert result["protocol"]["steps"] == {"0": 0, "50": 2, "100": 4}

    def identity(seed, name):
        return read_json(curve.folder / f"seed-{seed}" / name / "identity.json")

    def made(seed, name):
        return identity(seed, name)["config"]

    checkpoint = curve.folder / "seed-1/run/checkpoints/step-00000002"
    assert identity(1, "50-raw")["inputs"]["latte"]["path"] == str(checkpoint)
    assert [made(0, name)["weights"] for name in ("50-raw", "50-ema")] == ["raw", "ema"]
    assert made(0, "0-new")["untrained"]
    assert made(0, "full")["sampler"]["steps"] == 3
    assert made(0, "fast")["sampler"]["guidance_interval"] == [0.0, 0.5]
    losses = [read_log(curve.folder / f"seed-{seed}" / "run")[-1]["loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]
    report = (curve.folder / "learning_curve.md").read_text()
    assert "2 clips a row and seed, 2 seeds" in report
    assert "by chance 50 %" in report

    done = len(calls)
    learning_curve.run(curve)  # all is there
    assert len(calls) == done
    assert (curve.folder / "learning_curve.md").read_text() == report
    with pytest.raises(ValueError, match=r"fast.json: .*steps was '2', now '3'"):
        learning_curve.run(replace(curve, fast=SamplerConfig(method="ddim", steps=3)))
    vae = curve.folder.parent / "vae" / "model.safetensors"
    kept = vae.read_bytes()
    VideoVAE(VideoVAE.from_pretrained(vae.parent).config).save_pretrained(vae.parent)
    with pytest.raises(ValueError, match=rf"0-new.json: .*{vae} was .*sha256"):
        learning_curve.run(curve)
    vae.write_bytes(kept)
    other = checkpoint / "model.safetensors"
    other.write_bytes((checkpoint / "ema" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=rf"50-raw.json: .*{other} was .*sha256"):
        learning_curve.run(curve)


def test_bad_settings(curve):
    with pytest.raises(ValueError, match=r"percents=\(0, 50\) .* 100"):
        replace(curve, percents=(0, 50))
    with pytest.raises(ValueError, match="at least one seed"):
        replace(curve, seeds=())
    with pytest.raises(ValueError, match=r"none.yaml: no such config file"):
        replace(curve, train=curve.folder / "none.yaml")
    with pytest.raises(ValueError, match="10 % of its 4 steps is not a whole number of steps"):
        learning_curve.run(replace(curve, percents=(10, 100)))
