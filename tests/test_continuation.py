"""What a run folder may be continued with, two starts of one run, and damaged checkpoints."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from common.files import read_json
from data.clips.dataset import ClipConfig
from engine.config import TrainConfig
from engine.run_folder import read_log
from latte.config import LatteOptions
from latte.diffusion import DiffusionConfig
from scripts import train_latte, train_vae
from tests.builders.commands import run_script
from tests.builders.packed import pack
from vae import ImageVAE, VAEConfig, VideoVAE
from vae.losses import VAELossConfig

MODEL = VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
SIZE = {"frames": 5, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two data sets, a VAE, and the latents of the first data set."""
    root = tmp_path_factory.mktemp("made")
    for name, lengths in (("a", [14, 16, 18]), ("b", [15, 16, 18])):
        pack(root / name, lengths)
    torch.manual_seed(0)
    VideoVAE(MODEL).save_pretrained(root / "vae")
    places = {"vae": root / "vae", "data.folder": root / "a" / "shards", "out": root / "latents"}
    size = {f"data.{name}": value for name, value in SIZE.items()}
    flags = [f"--{name}={value}" for name, value in {**places, **size, "workers": 0}.items()]
    assert run_script("cache_latents.py", *flags) == 0
    return root


def settings(folder, steps=4, **values):
    common = {"global_batch_size": 2, "log_every": 1, "save_every": 2, "learning_rate": 1e-3}
    return TrainConfig(**{"folder": str(folder), "steps": steps, **common, **values})


def vae_run(made, folder, data="a", **values):
    return train_vae.TrainVAE(
        train=settings(folder, **values),
        data=ClipConfig(folder=str(made / data / "shards"), **SIZE),
        model=MODEL,
        loss=VAELossConfig(perceptual="none"),
    )


def latte_run(made, folder, **values):
    options = {"size": "custom", "hidden_size": 16, "depth": 2, "num_heads": 2}
    model = LatteOptions(**options, class_conditional=False)
    return train_latte.TrainLatte(
        train=settings(folder, **values), latents=str(made / "latents"), model=model
    )


def weights(folder):
    return load_file(folder / "export" / "model.safetensors")


def test_other_nested_settings_and_other_data_are_refused(made, tmp_path):
    """Fields of the same name as ones that may change, such as train.steps and train.folder."""
    latte = latte_run(made, tmp_path / "latte", steps=2)
    train_latte.run(replace(latte, diffusion=DiffusionConfig(steps=1000)))
    more = latte_run(made, tmp_path / "latte", steps=3, workers=1, keep=1)
    with pytest.raises(ValueError, match=r"diffusion\.steps was 1000, now 500"):
        train_latte.run(replace(more, diffusion=DiffusionConfig(steps=500)))
    train_latte.run(more)
    assert [line["step"] for line in read_log(tmp_path / "latte")] == [1, 2, 3]

    train_vae.run(vae_run(made, tmp_path / "vae", steps=2))
    with pytest.raises(ValueError, match=r"folder was .*; data was .*/a/shards \("):
        train_vae.run(vae_run(made, tmp_path / "vae", data="b"))
    (tmp_path / "vae").rename(tmp_path / "moved")
    train_vae.run(vae_run(made, tmp_path / "moved", steps=3, log_every=2))
    assert read_json(tmp_path / "moved" / "export" / "training.json")["step"] == 3


def test_data_packed_anew_under_the_same_path_are_refused(made, tmp_path):
    pack(tmp_path / "data", [14, 16, 18])
    run = vae_run(tmp_path, tmp_path / "run", data="data")
    train_vae.run(replace(run, train=settings(tmp_path / "run", steps=2)))
    (tmp_path / "data").rename(tmp_path / "old")
    pack(tmp_path / "data", [15, 16, 18])
    with pytest.raises(ValueError, match=r"data was .* now .*data/shards \(sha256"):
        train_vae.run(run)


def test_other_start_weights_under_the_same_path_are_refused(made, tmp_path):
    def start(seed):
        torch.manual_seed(seed)
        ImageVAE(MODEL.image()).save_pretrained(tmp_path / "image")

    run = replace(vae_run(made, tmp_path / "run"), init_from=str(tmp_path / "image"))
    start(1)
    train_vae.run(replace(run, train=settings(tmp_path / "run", steps=2)))
    start(2)
    with pytest.raises(ValueError, match=r"init_from was .*image \(.*now .*image"):
        train_vae.run(run)
    start(1)
    train_vae.run(run)


@pytest.mark.parametrize("kind", ["vae", "latte"])
def test_a_run_goes_on_bit_for_bit_from_the_checkpoint_before_a_damaged_one(
    kind, made, tmp_path, caplog
):
    run, config = {
        "vae": (train_vae.run, vae_run),
        "latte": (train_latte.run, latte_run),
    }[kind]
    run(config(made, tmp_path / "straight", steps=6))
    run(config(made, tmp_path / "run", steps=4))
    newest = tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.write('{"step": 5, "lo')
    caplog.clear()
    run(config(made, tmp_path / "run", steps=6))
    assert "step-00000004: damaged" in caplog.text
    assert_close(weights(tmp_path / "run"), weights(tmp_path / "straight"), rtol=0, atol=0)
    one, two = (read_log(tmp_path / name) for name in ("run", "straight"))
    assert [x["loss"] for x in one] == [x["loss"] for x in two]
    assert len(one) == 6
