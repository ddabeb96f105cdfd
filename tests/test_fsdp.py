"""FSDP on two processes: what one learns, resumed by any number, whole in all that is kept."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.testing import assert_close

from common.files import read_json, write_json
from data.clips.dataset import PackedClips
from engine import accelerator as engine_accelerator
from engine import fsdp
from engine.accelerator import training_accelerator
from engine.run_folder import read_log
from engine.train import Trainer
from latte import Latte
from latte.samplers import SamplerConfig
from scripts import cache_latents, train_latte, train_vae
from tests.builders.packed import pack
from tests.builders.processes import run_ranks
from tests.builders.tiny_latte import TINY, awake, inputs
from tests.builders.training_runs import MODEL, SIZE, gan_run, latte_run, settings
from vae import VideoVAE

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
DDP = {"ACCELERATE_USE_FSDP": "false"}
MILD = {"learning_rate": 1e-4}  # Adam makes much of rounding, the more the higher the rate


def latte(root, folder, steps=4, **values):
    config = latte_run(root / folder, root / "latents", steps, **MILD, ema_decay=0.5, **values)
    return replace(
        config,
        train=replace(config.train, evaluate_every=4),
        vae=str(root / "vae"),
        preview_sampler=SamplerConfig(method="ddim", steps=2),
        num_previews=1,
        num_held_out_clips=2,
    )


def rounded(root, folder, **values):
    return latte(root, folder, steps=2, precision="bf16", **values)


def gan(root, folder, **values):
    options = {"start": 0, "discriminator_rate": 1e-4, "save_every": 3, **MILD}
    config = gan_run(root / folder, root / "shards", steps=3, **options, **values)
    return replace(config, adversarial=replace(config.adversarial, r1_weight=0.1))


def thrifty(config):
    return replace(config, activation_checkpointing=True)


def weigh(config):
    """How many of a model's values, and of its average's, each process holds."""
    accelerator = training_accelerator(config)
    trainer = Trainer(config, config, accelerator, Latte(TINY))
    modules = {"weights": trainer.model, "average": trainer.ema.model}
    held = {
        name: sum(fsdp.local(p).numel() for p in module.parameters())
        for name, module in modules.items()
    }
    write_json(f"{config.folder}/{accelerator.process_index}.json", held)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs by name; those that begin with `one` are of one process."""
    root = tmp_path_factory.mktemp("made")
    pack(root, [12, 14, 16, 18])
    torch.manual_seed(0)
    VideoVAE(MODEL).save_pretrained(root / "vae")
    places = {"vae": str(root / "vae"), "out": str(root / "latents")}
    data = PackedClips(folder=str(root / "shards"), frames=5, **SIZE)
    cache_latents.run(cache_latents.CacheLatents(**places, data=data, workers=0))
    jobs = [
        (2, FSDP, train_latte.run, latte(root, "straight")),
        (2, FSDP, train_latte.run, latte(root, "resumed", steps=2)),
        (2, FSDP, train_latte.run, latte(root, "resumed")),
        (2, FSDP, train_latte.run, thrifty(rounded(root, "bf16"))),
        (2, FSDP, train_vae.run, thrifty(gan(root, "gan", micro_batch_size=1))),
        (2, FSDP, weigh, settings(root / "weighed", 1)),
        (2, DDP, train_latte.run, latte(root, "ddp", steps=2)),
        (1, DDP, train_latte.run, rounded(root, "one_bf16")),
    ]
    for count, environment, run, config in jobs:
        run_ranks(count, run, config, **environment)
    train_latte.run(latte(root, "one"))
    train_vae.run(gan(root, "one_gan"))
    return root


def assert_close_runs(a, b, rtol=1e-5, norms=1e-3):
    """Losses and scores, and norms that come of small differences of large numbers."""
    assert len(read_log(a)) == len(read_log(b)) > 0
    for x, y in zip(read_log(a), read_log(b), strict=True):
        names = {name for name in x if not name.startswith(("seconds", "clips_per", "memory"))}
        assert names <= y.keys()
        for name in names:
            loose = "norm" in name or "weight" in name
            assert_close(x[name], y[name], rtol=norms if loose else rtol, atol=1e-6, msg=name)


def last(run):
    return max((run / "checkpoints").iterdir())


def kept(checkpoint):
    """All tensors of a checkpoint, by file."""
    weights = {file.name: load_file(file) for file in checkpoint.rglob("*.safetensors")}
    states = {f.name: torch.load(f, weights_only=True) for f in checkpoint.glob("optimizer*.bin")}
    return weights, states


def test_two_processes_learn_what_one_does(made):
    assert_close_runs(made / "one", made / "straight")
    weights, states = kept(last(made / "straight"))
    assert_close((weights, states), kept(last(made / "one")), rtol=1e-4, atol=1e-6)


def test_a_resumed_run_equals_a_straight_one_bit_for_bit(made):
    assert_close_runs(made / "straight", made / "resumed", rtol=0, norms=0)
    assert_close(kept(last(made / "straight")), kept(last(made / "resumed")), rtol=0, atol=0)


def test_one_process_goes_on_where_two_stopped(made):
    shutil.copytree(made / "straight", made / "joined")
    shutil.rmtree(last(made / "joined"))
    for folder in ("joined", "ddp"):
        train_latte.run(latte(made, folder))
        assert_close_runs(made / "one", made / folder)
        assert_close(kept(last(made / folder)), kept(last(made / "one")), rtol=1e-4, atol=1e-6)


def test_the_gan_stage_too_with_micro_batches_and_activations_recomputed(made):
    assert read_log(made / "gan")[-1]["gan_weight"] > 0
    assert_close_runs(made / "one_gan", made / "gan")
    assert_close(kept(last(made / "gan"))[0], kept(last(made / "one_gan"))[0], rtol=1e-4, atol=1e-6)


def test_weights_travel_in_bf16_and_gradients_add_up_in_float32(made):
    assert_close_runs(made / "one_bf16", made / "bf16", rtol=1e-3, norms=1e-2)
    weights, states = kept(last(made / "bf16"))
    assert {value.dtype for file in weights.values() for value in file.values()} == {torch.float32}
    assert states["optimizer.bin"]["state"][0]["exp_avg"].dtype == torch.float32


def test_exports_and_previews_are_those_of_whole_weights(made):
    ours, theirs = (Latte.from_pretrained(made / run / "export") for run in ("straight", "one"))
    assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-6)
    video = made / "straight" / "samples" / "step-00000004.mp4"
    assert video.stat().st_size > 0


def test_each_process_holds_its_part(made):
    parts = [read_json(made / "weighed" / f"{rank}.json") for rank in (0, 1)]
    all_of_it = sum(p.numel() for p in Latte(TINY).parameters())
    for name in ("weights", "average"):
        held = [part[name] for part in parts]
        assert sum(held) == all_of_it
        assert min(held) > 0.45 * all_of_it


def test_a_shell_has_no_weights_and_becomes_the_model():
    model = awake(TINY)
    meta_copy = fsdp.MetaCopy(model)
    assert all(p.is_meta for p in meta_copy._module.parameters())
    unsharded = meta_copy.unsharded_copy(model, Accelerator())
    assert isinstance(unsharded, Latte)
    assert_close(unsharded(*inputs(TINY)), model(*inputs(TINY)), rtol=0, atol=0)
    assert all(p.is_meta for p in meta_copy._module.parameters())


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("FSDP_VERSION", "1", "fsdp_version=1"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing"),
    ],
)
def test_what_is_asked_of_fsdp_and_not_done_is_refused(monkeypatch, variable, value, named):
    monkeypatch.setenv("FSDP_VERSION", "2")
    asked = SimpleNamespace(state=None, mixed_precision="bf16", parallelism_config=None)
    fsdp.check(asked)
    asked.mixed_precision = "fp16"
    with pytest.raises(ValueError, match="mixed_precision=fp16 is not supported"):
        fsdp.check(asked)
    asked.mixed_precision = "no"
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{named}.* is not supported"):
        fsdp.check(asked)


def test_deepspeed_is_refused(monkeypatch, tmp_path):
    found = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    monkeypatch.setattr(engine_accelerator, "make_accelerator", lambda **options: found)
    with pytest.raises(ValueError, match="distributed_type=DEEPSPEED"):
        training_accelerator(settings(tmp_path, 1))
