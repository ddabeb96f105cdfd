"""Two processes train and sample what one does: joint batches, averaged weights, scores, clips."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from common.files import read_json
from data.clips.dataset import PackedClips
from data.video.decode import read_frames
from engine.config import TrainConfig
from engine.run_folder import read_log
from eval.features.classifier import ClassifierConfig, ClipClassifier
from eval.protocols.sample_fvd import SampleScoreConfig
from latte.samplers import SamplerConfig
from scripts import cache_latents, sample, train_latte
from scripts.sample import Sample
from scripts.train_latte import ImageOptions, LatteOptions, TrainLatte
from tests.builders.packed import pack
from tests.builders.ranks import run_jobs
from vae import VAEConfig, VideoVAE

FEW = SamplerConfig(method="ddim", steps=2)


def configs(root, out):
    """A joint, class-conditional run with every kind of score, and clips of its weights."""
    train = TrainConfig(
        folder=str(out / "run"),
        steps=4,
        global_batch_size=4,
        learning_rate=1e-3,
        log_every=1,
        save_every=2,
        evaluate_every=4,
        ema_decay=0.5,
    )
    training = TrainLatte(
        train=train,
        latents=str(root / "latents"),
        vae=str(root / "vae"),
        images=ImageOptions(latents=str(root / "images"), per_step=3),
        model=LatteOptions(
            size="custom", hidden_size=16, depth=2, num_heads=2, class_conditional=True
        ),
        preview_sampler=FEW,
        num_previews=1,
        fvd=SampleScoreConfig(
            real=str(root / "shards"), num_clips=3, classifier=str(root / "features")
        ),
    )
    sampling = Sample(
        latte=str(out / "run" / "export"),
        vae=str(root / "vae"),
        out=str(out / "clips"),
        num_clips=3,
        batch_size=2,
        sampler=replace(FEW, guidance=2.0),
    )
    return training, sampling


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folders `one` and `two`, of as many processes."""
    root = tmp_path_factory.mktemp("made")
    shards = pack(root, [9, 10, 11, 12])
    torch.manual_seed(0)
    VideoVAE(
        VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
    ).save_pretrained(root / "vae")
    ClipClassifier(ClassifierConfig(num_classes=2, width=8)).save_pretrained(root / "features")
    for name, frames in (("latents", 9), ("images", 1)):
        data = PackedClips(folder=str(shards), frames=frames, height=16, width=16)
        places = {"vae": str(root / "vae"), "out": str(root / name)}
        cache_latents.run(cache_latents.CacheLatents(**places, data=data, workers=0))
    training, sampling = configs(root, root / "one")
    train_latte.run(training)
    sample.run(sampling)
    functions = (train_latte.run, sample.run)
    jobs = [(2, {}, *job) for job in zip(functions, configs(root, root / "two"), strict=True)]
    run_jobs(root, jobs)
    return root


def test_losses_norms_and_scores_are_the_same(made):
    one, two = (read_log(made / name / "run") for name in ("one", "two"))
    assert [x["step"] for x in one] == [x["step"] for x in two] == [1, 2, 3, 4]
    for x, y in zip(one, two, strict=True):
        assert_close(x["loss"], y["loss"], rtol=1e-5, atol=0)
        assert_close(x["grad_norm"], y["grad_norm"], rtol=1e-3, atol=0)
    scores = {name for name in one[-1] if name.startswith("eval/")}
    assert {"eval/raw/fvd3_9f_features", "eval/ema/fvd3_9f_features"} < scores
    for name in scores:
        assert_close(one[-1][name], two[-1][name], rtol=1e-3, atol=0)


def test_raw_and_averaged_weights_are_the_same(made):
    last = Path("run") / "checkpoints" / "step-00000004"
    for file in (last / "model.safetensors", last / "ema" / "model.safetensors"):
        one, two = (load_file(made / name / file) for name in ("one", "two"))
        assert_close(one, two, rtol=0, atol=1e-4)  # Adam's first steps make much of rounding
    random = list((made / "two" / last).glob("random_states_*.pkl"))
    assert len(random) == 2


def test_clips_are_the_same(made):
    folders = [made / name / "clips" for name in ("one", "two")]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    clips = [f"clip-{i:06d}.mkv" for i in range(3)]
    assert names[0] == names[1] == [".lock", *clips, "identity.json", "samples.json"]
    labels = [[c["label"] for c in read_json(f / "samples.json")["clips"]] for f in folders]
    assert labels[0] == labels[1] == [0, 1, 0]
    frames = [[read_frames(f / clip, range(9)).astype(int) for clip in clips] for f in folders]
    for one, two in zip(*frames, strict=True):
        assert abs(one - two).max() <= 1  # the sizes of the batches differ, and so their rounding
        assert (one != two).mean() < 0.01
    assert (frames[0][0] != frames[0][2]).mean() > 0.5
