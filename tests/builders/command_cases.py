"""Every command that can be interrupted, with what the tests of all of them need to know.

Not here: demo, which runs other commands as ablate, chain and learning_curve do
(tests/test_stages.py, tests/test_pipeline.py).
"""

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from common.files import read_json
from data.clips.batches import Bucket, BucketConfig
from data.clips.dataset import ClipConfig, PackedClips
from engine.config import OptimizerConfig
from engine.run_folder import read_log
from eval.experiments.chain import Row
from eval.protocols.training_scores import SampleFVDConfig
from latte.samplers import SamplerConfig
from latte.training_config import ImageOptions
from scripts import (
    ablate,
    cache_latents,
    chain,
    convert_checkpoint,
    eval_fvd,
    eval_is,
    eval_reconstruction,
    export_latents,
    index_shards,
    learning_curve,
    make_shards,
    sample,
    train_classifier,
    train_latte,
    train_vae,
)
from tests.builders.commands import with_stages_here
from tests.builders.training_runs import SIZE, gan_run, latte_run, settings, video_run

FEW = SamplerConfig(method="ddim", steps=2)
TIMINGS = ("seconds", "clips_per_second", "memory")


def all_files(out: Path) -> dict[str, bytes]:
    """The bytes of every file that is not hidden, as locks and half-written files are."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if "/." not in f"/{name}"}


def training_run(out: Path) -> dict[str, Any]:
    """What a run has learned and logged, without its timings: exported weights, and all that its
    last checkpoint holds of networks and optimizers."""
    found: dict[str, Any] = {
        "log": [
            {k: v for k, v in line.items() if not k.startswith(TIMINGS)} for line in read_log(out)
        ]
    }
    last = max((out / "checkpoints").iterdir())
    for file in (out / "export" / "model.safetensors", *last.rglob("*.safetensors")):
        found[file.relative_to(out).as_posix()] = load_file(file)
    for file in last.glob("optimizer*.bin"):
        found[file.name] = torch.load(file, weights_only=True)["state"]
    return found


def chain_result(out: Path) -> dict[str, bytes]:
    """What a chain has found, without the times of its stages."""
    result = read_json(out / "chain.json")
    for cells in result["cells"].values():
        for cell in cells.values():
            del cell["seconds"]
    return {"chain.json": json.dumps(result).encode()}


def tables(out: Path) -> dict[str, bytes]:
    """What an experiment has found, without the logs and timings of its commands."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A change that a folder must not be continued with."""

    changes: Mapping[str, Any]
    """Dotted path of the field to its value; `{project}` in it stands for the project's folder."""
    says: str
    """Pattern of the changed thing and its values in the message; `{project}` likewise."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One command."""

    run: Callable[[Any], object]
    """The command."""
    config: Callable[[Path, Path], Any]
    """Project and output folder to a config."""
    contents: Callable[[Path], dict[str, Any]] = all_files
    """What must be equal of two output folders."""
    kept: str | None
    """Pattern of the files that tell which work is done, which a continued run does not repeat;
    None for a command that repeats it all."""
    at_once: bool = False
    """Whether all that it writes appears in one move."""
    locks: bool = True
    """Whether it writes into a folder that it keeps other runs out of."""
    in_two: Mapping[str, Any] = field(default_factory=dict)
    """Changes for two processes, which must not change what they learn."""
    free: Mapping[str, Any] = field(default_factory=dict)
    """Changes that a continued run may make: dotted path to value, at any depth."""
    refusals: tuple[Refusal, ...] = ()
    """Changes that it may not make."""


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """The config with other values at dotted paths."""
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        now = getattr(config, name)
        if rest:
            value = changed(now, {rest: value})
        config = replace(config, **{name: Path(value) if isinstance(now, Path) else value})
    return config


def in_project(value, project):
    """The value with the project's folder in it."""
    if isinstance(value, str):
        return value.replace("{project}", str(project))
    if isinstance(value, list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found = {key: in_project(each, project) for key, each in items}
        return found if isinstance(value, dict) else list(found.values())
    return value


def run_until(number, whole, run, config):
    """Run a command in this process, which is killed at the file that is the `number`-th to get
    its final name: just after that, or when half of it is written."""
    moves = count(1)

    def dying(move):
        def moved(source, target, **options):
            if next(moves) == number:
                if whole:
                    move(source, target, **options)
                elif os.path.isfile(source):
                    os.truncate(source, os.path.getsize(source) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            move(source, target, **options)

        return moved

    os.replace, os.rename = dying(os.replace), dying(os.rename)
    run(config)


def assert_same(found, expected):
    """Equal names and, bit for bit, values."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):  # of tensors
            assert_close(found[name], value, rtol=0, atol=0)
        else:
            assert found[name] == value, name


def _cache_latents(project: Path, out: Path) -> cache_latents.CacheLatents:
    options = {"clips_per_video": 2, "items_per_shard": 2, "workers": 0, "batch_size": 2}
    return cache_latents.CacheLatents(
        vae=str(project / "vae"),
        data=PackedClips(folder=str(project / "shards"), frames=5, **SIZE),
        out=str(out),
        **options,
    )


def _sample(project: Path, out: Path) -> sample.Sample:
    return sample.Sample(
        latte=str(project / "latte" / "export"),
        vae=str(project / "vae"),
        out=str(out),
        num_clips=4,
        batch_size=2,
        sampler=replace(FEW, guidance=2.0),
    )


def _make_shards(project: Path, out: Path) -> Any:
    """Of six videos one is too short and one broken."""
    options = {"min_frames": 10, "videos_per_shard": 2, "short_side": 32, "workers": 0}
    return make_shards.COMMANDS["folder"](
        root=project / "flawed", out=out, on_error="skip", **options
    )


def _eval_fvd(project: Path, out: Path) -> eval_fvd.EvalFVD:
    return eval_fvd.EvalFVD(
        real=str(project / "real"),
        fake=[str(project / "fake")],
        classifier=str(project / "tiny"),
        frames=4,
        stride_real=1,
        batch_size=2,
        feature_cache=str(out / "features"),
        out=str(out / "result.json"),
    )


def _eval_is(project: Path, out: Path) -> eval_is.EvalIS:
    return eval_is.EvalIS(
        real=str(project / "real"),
        fake=str(project / "fake"),
        classifier=str(project / "tiny"),
        frames=4,
        num_clips=2,
        runs=2,
        batch_size=2,
        feature_cache=str(out / "features"),
        out=str(out / "result.json"),
    )


def _eval_reconstruction(project: Path, out: Path) -> eval_reconstruction.EvalReconstruction:
    return eval_reconstruction.EvalReconstruction(
        vae=[f"ours={project}/vae"],
        data=str(project / "shards"),
        out=str(out),
        frames=5,
        height=32,
        width=32,
        save_clips=2,
    )


def _train_classifier(project: Path, out: Path) -> train_classifier.TrainClassifier:
    train = settings(out, 4, learning_rate=1e-4)
    data = ClipConfig(folder=str(project / "shards"), frames=4, **SIZE)
    return train_classifier.TrainClassifier(train=train, data=data, channels=8)


def _joint_latte(project: Path, out: Path) -> train_latte.TrainLatte:
    """With every kind of score."""
    clips = {"real": str(project / "shards"), "num_clips": 3, "classifier": str(project / "tiny")}
    return replace(
        latte_run(out, project / "latents", ema_decay=0.5, evaluate_every=4),
        images=ImageOptions(latents=str(project / "images"), per_step=3),
        vae=str(project / "vae"),
        preview_sampler=FEW,
        num_previews=1,
        fvd=SampleFVDConfig(**clips),
    )


def _mixed_gan(project: Path, out: Path) -> train_vae.TrainVAE:
    """With steps of single frames, too. Adam makes much of rounding where a gradient is nearly
    zero, the more the higher the rate."""
    mild = {"learning_rate": 1e-4, "discriminator_rate": 1e-4}
    sizes = (Bucket(frames=1, batch_size=4, **SIZE), Bucket(frames=5, batch_size=2, **SIZE))
    config = gan_run(out, project / "shards", steps=5, start=1, **mild)
    return replace(config, buckets=BucketConfig(buckets=sizes, enlarge=True))


def _scored_video(project: Path, out: Path) -> train_vae.TrainVAE:
    """With scores and previews of three clips."""
    config = video_run(out, project / "shards")
    train = replace(config.train, evaluate_every=4)
    clips = {"held_out": config.data, "num_held_out_clips": 3, "num_previews": 3}
    return replace(config, train=train, **clips)


def _image_stage(project: Path, out: Path) -> train_vae.TrainVAE:
    return changed(video_run(out, project / "shards"), {"data.frames": 1, "stage": "image"})


def _ablate(project: Path, out: Path) -> ablate.Ablate:
    return ablate.Ablate(
        folder=out,
        video=project / "ablate_video.yaml",
        architectures=("ktc",),
        tests={"bars": project / "shards"},
        seeds=(0,),
    )


def _chain(project: Path, out: Path) -> chain.Chain:
    names = ("latents", "card", "score")
    return chain.Chain(
        folder=out,
        rows=(Row(name="trained", train=project / "ablate_video.yaml"),),
        seeds=(0,),
        latte=project / "curve_train.yaml",
        samples=project / "curve_samples.yaml",
        **{name: project / f"chain_{name}.yaml" for name in names},
    )


def _learning_curve(project: Path, out: Path) -> learning_curve.LearningCurve:
    return learning_curve.LearningCurve(
        folder=out,
        train=project / "curve_train.yaml",
        samples=project / "curve_samples.yaml",
        classifier=str(project / "two_classes"),
        reference=str(project / "long" / "shards"),
        percents=(100,),
        seeds=(0,),
        full=FEW,
        fast=replace(FEW, steps=3),
    )


OTHER_DATA = Refusal(
    changes={"data.folder": "{project}/other_shards"},
    says=r"data was {project}/shards \(sha256 \w+\), now {project}/other_shards",
)
RUN = {"train.save_every": 1, "train.keep": 3, "train.keep_every": 2}
RUN |= {"train.max_skipped_steps": 5, "train.workers": 1}
"""Free settings of every training run."""
CASES: dict[str, Case] = {
    "train_vae image": Case(
        run=train_vae.run,
        config=_image_stage,
        contents=training_run,
        kept="checkpoints/step-*",
        free={**RUN, "num_previews": 0},
        refusals=(OTHER_DATA,),
    ),
    "train_vae video": Case(
        run=train_vae.run,
        config=_scored_video,
        contents=training_run,
        kept="checkpoints/step-*",
        free={**RUN, "num_previews": 2, "activation_checkpointing": True},
        refusals=(
            OTHER_DATA,
            Refusal(changes={"loss.kl_weight": 0.5}, says=r"loss\.kl_weight was \S+, now 0\.5"),
            Refusal(changes={"train.seed": 3}, says=r"train\.seed was 0, now 3"),
        ),
    ),
    "train_vae gan": Case(
        run=train_vae.run,
        config=_mixed_gan,
        in_two={"train.micro_batch_size": 1},
        contents=training_run,
        kept="checkpoints/step-*",
        free={**RUN, "num_held_out_clips": 1, "metric_networks.classifier": "{project}/tiny"},
        refusals=(
            Refusal(
                changes={"adversarial.optimizer": OptimizerConfig(learning_rate=0.25)},
                says=r"adversarial\.optimizer\.learning_rate was 0\.0001, now 0\.25",
            ),
        ),
    ),
    "train_latte": Case(
        run=train_latte.run,
        config=_joint_latte,
        contents=training_run,
        kept="checkpoints/step-*",
        free={**RUN, "num_previews": 2, "activation_checkpointing": True},
        refusals=(
            Refusal(
                changes={"latents": "{project}/other_latents"},
                says=r"latents was {project}/latents \(sha256 \w+\), now {project}/other_latents",
            ),
            Refusal(changes={"diffusion.steps": 500}, says=r"diffusion\.steps was 1000, now 500"),
        ),
    ),
    "train_classifier": Case(
        run=train_classifier.run,
        config=_train_classifier,
        contents=training_run,
        kept="checkpoints/step-*",
        free=RUN,
        refusals=(OTHER_DATA,),
    ),
    "make_shards": Case(
        run=make_shards.run,
        config=_make_shards,
        kept="shard-*.json",
        free={"workers": 2, "time_limit": 50.0},
        refusals=(
            Refusal(changes={"crf": 9}, says="crf was 12, now 9"),
            Refusal(
                changes={"root": "{project}/other_videos"},
                says=r"videos was 6 videos \(sha256 \w+\), now 4 videos",
            ),
        ),
    ),
    "cache_latents": Case(
        run=cache_latents.run,
        config=_cache_latents,
        kept="latents-*.json",
        free={"workers": 1},
        refusals=(
            Refusal(
                changes={"vae": "{project}/other_vae"}, says=r"vae\.encoder_sha256 was '.*', now"
            ),
            Refusal(
                changes={"data.folder": "{project}/other_shards"},
                says=r"source\.hash was '.*', now",
            ),
            Refusal(changes={"seed": 1}, says=r"cache\.seed was 0, now 1"),
        ),
    ),
    "export_latents": Case(
        run=export_latents.run,
        config=lambda project, out: export_latents.ExportLatents(
            latents=str(project / "latents"), out=str(out)
        ),
        kept="latents-*.tar",
        refusals=(
            Refusal(
                changes={"latents": "{project}/other_latents"},
                says=r"latents was {project}/latents \(sha256 \w+\), now {project}/other_latents",
            ),
        ),
    ),
    "sample": Case(
        run=sample.run,
        config=_sample,
        kept="clip-*.mkv",
        refusals=(
            Refusal(changes={"untrained": True}, says=r"untrained was False, now True; latte was"),
            Refusal(changes={"sampler.steps": 3}, says=r"sampler\.steps was 2, now 3"),
        ),
    ),
    "eval_fvd": Case(
        run=eval_fvd.run,
        config=_eval_fvd,
        kept="features/*",
        locks=False,
        free={"workers": 1},
    ),
    "eval_is": Case(
        run=eval_is.run,
        config=_eval_is,
        kept="features/*",
        locks=False,
        free={"workers": 1},
    ),
    "index_shards": Case(
        run=index_shards.run,
        config=lambda project, out: index_shards.IndexShards(
            shards=str(project / "tars"), out=str(out), workers=0
        ),
        kept="index.parts/*.json",
    ),
    "convert_checkpoint": Case(
        run=convert_checkpoint.run,
        config=lambda project, out: convert_checkpoint.ConvertCheckpoint(
            source=str(project / "released.pth"), out=str(out / "vae")
        ),
        kept="vae",
        at_once=True,
        locks=False,
        refusals=(Refusal(changes={"latent_std": 2.0}, says="vae: holds something else"),),
    ),
    "ablate": Case(
        run=partial(with_stages_here, ablate.run),
        config=_ablate,
        contents=tables,
        kept="ktc/video-*.json",
        refusals=(
            Refusal(
                changes={"video": "{project}/curve_train.yaml"},
                says=r"video-0\.json: was made with other settings",
            ),
        ),
    ),
    "chain": Case(
        run=partial(with_stages_here, chain.run),
        config=_chain,
        contents=chain_result,
        kept="trained/seed-0/stages/*.json",
        refusals=(
            Refusal(
                changes={"samples": "{project}/curve_train.yaml"},
                says=r"samples\.json: was made with other settings",
            ),
        ),
    ),
    "learning_curve": Case(
        run=partial(with_stages_here, learning_curve.run),
        config=_learning_curve,
        contents=tables,
        kept="seed-0/*.json",
        refusals=(
            Refusal(
                changes={"reference": "{project}/shards"},
                says=r"fvd\.json: was made with other settings or inputs: .*long/shards",
            ),
        ),
    ),
    "eval_reconstruction": Case(
        run=eval_reconstruction.run,
        config=_eval_reconstruction,
        kept=None,
        free={"workers": 1},
        refusals=(
            Refusal(
                changes={"data": "{project}/other_shards"},
                says=r"data was {project}/shards \(sha256 \w+\), now {project}/other_shards",
            ),
            Refusal(
                changes={"vae": ["ours={project}/other_vae"]},
                says=r"ours was {project}/vae \(sha256 \w+\), now {project}/other_vae",
            ),
        ),
    ),
}
