"""Both trainers for real: resumed equals straight, signals, kills, several processes, bad input."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from common.cli import parse
from data.clips.dataset import ClipConfig, PackedClips
from engine.run_folder import read_log
from eval.protocols import training_scores
from latte.config import LatteOptions
from scripts import cache_latents, train_latte, train_vae
from scripts.train_latte import TrainLatte
from scripts.train_vae import TrainVAE
from tests.builders.packed import pack
from tests.builders.training_runs import (
    MODEL,
    SIZE,
    as_command,
    latte_run,
    settings,
    video_run,
    weights,
)
from vae import VideoVAE
from vae.losses import VAELossConfig
from vae.training import initial_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("data") / "shards", [12, 14, 16, 18, 20, 22])


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    VideoVAE(MODEL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latents(shards, vae, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "latents"
    cache_latents.run(
        cache_latents.CacheLatents(
            vae=str(vae),
            data=PackedClips(folder=str(shards), frames=5, **SIZE),
            out=str(out),
            workers=0,
        )
    )
    return out


def commands(kind, shards, latents):
    """How to run a trainer in this process, and its config for a folder and a number of steps."""
    if kind == "vae":
        return train_vae.run, lambda folder, **v: video_run(folder, shards, **v)
    return train_latte.run, lambda folder, **v: latte_run(folder, latents, **v)


def assert_same_run(a: Path, b: Path):
    assert_close(weights(a), weights(b), rtol=0, atol=0)
    assert [x["loss"] for x in read_log(a)] == [x["loss"] for x in read_log(b)]
    assert [x["step"] for x in read_log(a)] == [x["step"] for x in read_log(b)]


@pytest.mark.parametrize("last", [False, True])
def test_a_preview_lost_in_a_kill_is_drawn_from_the_checkpoint(last, shards, tmp_path, monkeypatch):
    def preview(folder):
        return folder / "samples" / "step-00000002.mp4"

    def killed(*_):
        raise KeyboardInterrupt

    steps = 2 if last else 4
    train_vae.run(video_run(tmp_path / "straight", shards, steps))
    with monkeypatch.context() as patch:
        patch.setattr(training_scores, "write_video", killed)
        with pytest.raises(KeyboardInterrupt):
            train_vae.run(video_run(tmp_path / "killed", shards, steps))
    assert not preview(tmp_path / "killed").exists()
    train_vae.run(video_run(tmp_path / "killed", shards, steps))
    assert preview(tmp_path / "killed").read_bytes() == preview(tmp_path / "straight").read_bytes()
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.parametrize("kind", ["vae", "latte"])
def test_seed_and_step_change_what_is_drawn(kind, shards, latents, tmp_path):
    run, config = commands(kind, shards, latents)
    run(config(tmp_path / "a", steps=2, learning_rate=1e-12))
    run(config(tmp_path / "b", steps=2, learning_rate=1e-12, seed=1))
    a, b = ([x["loss"] for x in read_log(tmp_path / n)] for n in "ab")
    assert len({*a, *b}) == 4


@pytest.mark.parametrize("kind", ["vae", "latte"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(kind, shards, latents, tmp_path):
    run, config = commands(kind, shards, latents)
    run(config(tmp_path / "whole", steps=2))
    run(config(tmp_path / "parts", steps=2, micro_batch_size=1))
    for x, y in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "parts"), strict=True):
        assert_close(x["loss"], y["loss"], rtol=1e-4, atol=0)
        assert_close(x["grad_norm"], y["grad_norm"], rtol=1e-3, atol=0)


def test_gradients_are_clipped_from_a_step_on(shards, tmp_path):
    runs = {"never": None, "later": 4, "from_the_third": 2}
    for name, start in runs.items():
        limit = {} if start is None else {"clip_from_step": start}
        values = {"max_grad_norm": None if start is None else 1e-3, **limit}
        train_vae.run(video_run(tmp_path / name, shards, **values))
    assert_same_run(tmp_path / "never", tmp_path / "later")
    a, b = (read_log(tmp_path / name) for name in ("never", "from_the_third"))
    assert [x["loss"] for x in a[:3]] == [x["loss"] for x in b[:3]]
    assert a[3]["loss"] != b[3]["loss"]


def test_the_loss_falls_and_the_average_is_exported(shards, tmp_path):
    train_vae.run(video_run(tmp_path, shards, steps=60, save_every=60, ema_decay=0.9))
    losses = [line["mae"] for line in read_log(tmp_path)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    checkpoint = next((tmp_path / "checkpoints").iterdir())
    assert_close(
        weights(tmp_path), load_file(checkpoint / "ema" / "model.safetensors"), rtol=0, atol=0
    )
    assert (tmp_path / "samples" / "step-00000060.mp4").stat().st_size > 0


def test_training_ends_with_the_export_the_scores_and_the_next_command(shards, tmp_path, caplog):
    config = video_run(tmp_path / "run", shards, steps=1)
    train = replace(config.train, evaluate_every=1)
    with caplog.at_level("INFO"):
        train_vae.run(replace(config, train=train, held_out=config.data, num_held_out_clips=1))
    first, *scores, last = [
        record.message for record in caplog.records if record.name == "engine.train"
    ]
    assert first == f"{tmp_path}/run/export: the averaged weights of step 1"
    assert any(line.startswith("  eval/ema/psnr ") for line in scores)
    command = last.removeprefix("next: python scripts/cache_latents.py ").split()
    assert parse(cache_latents.CacheLatents, command).vae == f"{tmp_path}/run/export"


def test_a_video_vae_starts_from_an_image_vae(shards, tmp_path):
    image = TrainVAE(
        train=settings(tmp_path / "image", 1),
        data=ClipConfig(folder=str(shards), frames=1, **SIZE),
        model=MODEL,
        stage="image",
        loss=VAELossConfig(perceptual="none"),
    )
    export = train_vae.run(image)
    model = initial_model(MODEL, image=False, source=str(export))
    assert_close(
        model.get_parameter("decoder.norm_out.gain")[:4],
        weights(tmp_path / "image")["decoder.norm_out.gain"],
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(shards, tmp_path):
    wild = {"learning_rate": 1e30, "max_grad_norm": None, "log_every": 30, "max_skipped_steps": 3}
    with pytest.raises(ValueError, match=r"3 steps in a row.* step \d+ \(mae is (nan|inf)"):
        train_vae.run(video_run(tmp_path, shards, 30, **wild))
    assert not (tmp_path / "export").exists()


def test_mistakes_are_refused_before_the_run(shards, latents, vae, tmp_path):
    with pytest.raises(ValueError, match="6 frames, but the VAE needs"):
        TrainVAE(
            train=settings(tmp_path, 1),
            data=ClipConfig(folder=str(shards), frames=6, **SIZE),
            model=MODEL,
        )
    with pytest.raises(ValueError, match=r"set data\.frames=1"):
        TrainVAE(
            train=settings(tmp_path, 1),
            data=ClipConfig(folder=str(shards), frames=5, **SIZE),
            stage="image",
        )
    with pytest.raises(ValueError, match="fewer than one global batch"):
        train_latte.run(latte_run(tmp_path, latents, global_batch_size=64))
    with pytest.raises(ValueError, match="all three with size=custom"):
        LatteOptions(size="S", depth=2)
    assert not list(tmp_path.iterdir())


def test_missing_lpips_weights_are_refused_before_the_run(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    config = TrainVAE(
        train=settings(tmp_path / "run", 1),
        data=ClipConfig(folder=str(shards), frames=5, **SIZE),
        model=MODEL,
    )
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth.*perceptual to none"):
        train_vae.run(config)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line_and_leaves_no_half_checkpoint(small_disk, shards, tmp_path):
    config = video_run(small_disk / "run", shards)
    done = subprocess.run(
        [sys.executable, *as_command(config, tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left on device" in last
    left = list((small_disk / "run" / "checkpoints").iterdir())
    assert all(path.name.startswith("step-") and (path / "state.json").exists() for path in left)


def test_latents_of_another_vae_are_refused(latents, tmp_path):
    torch.manual_seed(1)
    VideoVAE(MODEL).save_pretrained(tmp_path / "other")
    config = TrainLatte(
        train=settings(tmp_path / "run", 1), latents=str(latents), vae=str(tmp_path / "other")
    )
    with pytest.raises(ValueError, match="VAE"):
        train_latte.run(config)
