"""The published runs of Latte: one file for each data set, all alike but for that."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.cli import parse
from eval.protocols.training_scores import SampleFVDConfig
from latte import Latte, LatteConfig
from latte.training_config import ImageOptions
from scripts.train_latte import TrainLatte

CONFIGS = Path(__file__).parents[1] / "configs" / "latte"
SETS = ("sky", "ucf101", "faceforensics", "kinetics400")
CLASSES = {"ucf101": 101, "kinetics400": 400}
SIZES = ("S", "B", "L", "XL")


def load(name, *flags):
    return parse(TrainLatte, ["--config", str(CONFIGS / f"{name}.yaml"), *flags])


def test_there_is_one_for_each():
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == {*SETS, "debug"}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("size", SIZES)
def test_the_papers_settings(name, size):
    config = load(name, "--model.size", size)
    assert load(name).model.size == "XL"
    assert (config.train.global_batch_size, config.train.learning_rate) == (32, 1e-4)
    assert (config.train.weight_decay, config.train.ema_decay) == (0, 0.9999)
    clipping = {"sky": 20_000, "faceforensics": 20_000}.get(name, 100_000)
    assert (config.train.max_grad_norm, config.train.clip_from_step) == (0.1, clipping)
    assert config.named().train.folder == f"runs/latte/{name}_{size.lower()}2"
    assert config.latents == f"datasets/latents/{name}"
    assert config.model.class_conditional == (name in CLASSES)
    joint = ImageOptions(latents="datasets/latents/sky_images", per_step=20)
    assert config.images == (joint if name == "sky" else None)
    shape = (16, 5, 32, 32)  # 17 frames of 256 x 256
    built = config.model.build(shape, CLASSES.get(name, 0), flow=False)
    wanted = LatteConfig.preset(
        size, in_channels=16, num_frames=5, height=32, width=32, num_classes=CLASSES.get(name)
    )
    assert built == wanted


def test_data_sets_differ_in_nothing_else():
    first, *others = map(load, SETS)
    for other in others:
        same = replace(
            other,
            train=replace(
                other.train,
                folder=first.train.folder,
                clip_from_step=first.train.clip_from_step,
            ),
            latents=first.latents,
            images=first.images,
            model=replace(other.model, class_conditional=False),
        )
        assert same == first


def test_other_forms_are_one_flag():
    """Joint or on videos alone, by class or not; also with an FVD to watch."""
    files = [str(CONFIGS / f"{name}.yaml") for name in ("sky", "faceforensics", "ucf101")]
    sky = parse(TrainLatte, ["--config", files[0], "--images", "null"])
    assert sky.images is None
    joint = parse(
        TrainLatte,
        [
            "--config",
            files[1],
            "--images.latents=datasets/latents/ff_images",
            "--images.per_step=8",
        ],
    )
    assert joint.images == ImageOptions(latents="datasets/latents/ff_images", per_step=8)
    plain = parse(TrainLatte, ["--config", files[2], "--model.class_conditional", "false"])
    assert plain.model.build((16, 5, 32, 32), 101, flow=False).num_classes is None
    watched = parse(TrainLatte, ["--config", files[0], "--vae", "v", "--fvd.real", "shards"])
    assert watched.fvd == SampleFVDConfig(real="shards")


def test_debug_is_small():
    config = load("debug")
    with torch.device("meta"):
        model = Latte(config.model.build((8, 5, 8, 8), 9, flow=False))
    assert sum(p.numel() for p in model.parameters()) < 1e6
    assert config.train.steps <= 300
