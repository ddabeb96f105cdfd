"""Every field of every command: what it refuses, and whether a continued run may change it."""

import math
import types
from typing import Union, get_args, get_origin

import pytest
import torch

from common.config import base_type, check_value, item_types, walk_fields
from scripts import (
    ablate,
    cache_latents,
    chain,
    convert_checkpoint,
    demo,
    doctor,
    eval_fvd,
    eval_is,
    eval_reconstruction,
    export_latents,
    figures,
    index_shards,
    inspect_cache,
    learning_curve,
    make_shards,
    report,
    sample,
    train_classifier,
    train_latte,
    train_vae,
    verify_data,
)

COMMANDS = (
    *(ablate.Ablate, cache_latents.CacheLatents, convert_checkpoint.ConvertCheckpoint, demo.Demo),
    *(chain.Chain, doctor.Doctor),
    *(eval_fvd.EvalFVD, eval_is.EvalIS, eval_reconstruction.EvalReconstruction),
    *(export_latents.ExportLatents, index_shards.IndexShards, inspect_cache.InspectCache),
    *(learning_curve.LearningCurve, report.MakeReport, sample.Sample, verify_data.VerifyData),
    *(train_classifier.TrainClassifier, train_latte.TrainLatte, train_vae.TrainVAE),
    *make_shards.COMMANDS.values(),
    *(figures.Comparison, figures.Caption, figures.Latents, figures.Unselected),
    *(figures.Positions, figures.Preservation, figures.Samples),
)
SIGNED = {
    "seed",
    "image_seed",
    "seeds",
    "labels",
    "train.seed",
    "latent_mean",
    "model.latent_mean",
    "flow.mean",
}
RUN = {
    *("folder", "steps", "workers", "log_every", "save_every", "keep", "keep_every"),
    *("evaluate_every", "max_skipped_steps", "wandb"),
}
SHOWN = {"activation_checkpointing", "compile", "dry_run", "held_out", "num_held_out_clips"}
MAY_CHANGE = {
    train_vae.TrainVAE: SHOWN | {"metric_networks", "num_previews", "stream.urls"},
    train_latte.TrainLatte: SHOWN | {"fvd", "num_previews"},
    train_classifier.TrainClassifier: set(),
}

LOOPS = (
    "clips_per_video",
    "num_blocks",
    "layers",
    "depth",
    "steps",
    "resamples",
    "runs",
    "repeats",
    "warmup",
)
"""Fields by whose number something is repeated, without which memory would be the bound."""


def options(hint):
    base = base_type(hint)
    return get_args(base) if get_origin(base) in (Union, types.UnionType) else (base,)


def refuses(value, field):
    """Whether a field refuses a value; if so, in one line that begins with its path."""
    message = ""
    try:
        check_value(value, field.hint, field.name)
    except ValueError as error:
        message = str(error)
    assert not message or (message.startswith(field.name) and "\n" not in message)
    return bool(message)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_null_infinity_and_absurd_workers_are_refused_at_every_depth(command):
    for field in walk_fields(command):
        kinds = [base_type(option) for option in options(field.hint)]
        assert refuses(None, field) != (types.NoneType in kinds), field
        assert all(refuses(value, field) for value in (math.inf, -math.inf, math.nan)), field
        assert refuses("", field), field
        if field.name.rpartition(".")[2] in LOOPS:
            assert refuses(10**12, field), field
        if field.name.endswith("workers"):
            assert refuses(-1, field), field
            assert refuses(10**9, field), field


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_negative_numbers_are_refused_but_of_seeds_and_means(command):
    for field in walk_fields(command):
        for base in map(base_type, options(field.hint)):
            listed = get_origin(base) in (list, tuple)
            numbers = item_types(base, 1) if listed else (base,)
            kinds = {base_type(number) for number in numbers}
            if kinds & {int, float} and field.name not in SIGNED:
                negative = [-1 if int in kinds else -1.0] * len(numbers)
                value = get_origin(base)(negative) if listed else negative[0]
                assert refuses(value, field), field


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_gpu_that_is_not_there_is_refused(gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    fields = [field for command in COMMANDS for field in walk_fields(command)]
    devices = [field for field in fields if field.name.endswith("device")]
    assert len(devices) >= len((eval_fvd, eval_is, eval_reconstruction))
    for field in devices:
        assert [refuses(device, field) for device in ("auto", "cpu")] == [False, False]
        assert [refuses(device, field) for device in ("cuda", "cuda:0")] == [gpus == 0] * 2
        assert all(refuses(device, field) for device in ("cuda:1", "cuda:x", "gpu", "0"))


@pytest.mark.parametrize("command", MAY_CHANGE, ids=lambda command: command.__name__)
def test_what_a_continued_run_may_change_is_told_by_the_whole_path(command):
    found = {field.name for field in walk_fields(command) if field.may_change}
    marked = {f"train.{name}" for name in RUN} | MAY_CHANGE[command]
    assert found == {
        field.name
        for field in walk_fields(command)
        if any(field.name == name or field.name.startswith(f"{name}.") for name in marked)
    }
    assert marked <= found
    assert not found & {"data.folder", "diffusion.steps", "stream.folder", "latents"}
