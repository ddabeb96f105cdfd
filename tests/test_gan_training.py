"""The chain of stages and the GAN stage for real: resumed, killed, on two processes."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close

from common.cli import parse
from common.files import read_json
from engine.run_folder import read_log
from eval.protocols.training_scores import HeldOut, fixed_clips
from scripts import train_vae
from scripts.train_vae import TrainVAE
from tests.builders.command_cases import assert_same, training_run
from tests.builders.commands import exit_code
from tests.builders.packed import pack
from tests.builders.training_runs import (
    DISCRIMINATOR,
    MODEL,
    as_command,
    gan_run,
    weights,
)
from vae import VAEConfig, VideoVAE
from vae.config import PRESETS
from vae.discriminator import DiscriminatorConfig
from vae.losses import VAELossConfig
from vae.training import initial_model

ROOT = Path(__file__).parents[1]
DEBUG = sorted((ROOT / "configs" / "vae" / "debug").glob("*.yaml"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("data") / "shards", [12, 14, 16, 18, 20, 22])


def test_image_only_steps_leave_no_parameter_of_the_video_vae_without_gradient():
    torch.manual_seed(0)
    model = VideoVAE(MODEL)
    y, posterior = model(torch.rand(1, 3, 1, 16, 16), torch.randn(1, 4, 1, 2, 2))
    (y.sum() + posterior.kl().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_raw_and_averaged_weights_are_scored_on_held_out_clips(shards, tmp_path):
    config = gan_run(tmp_path, shards, steps=3, start=0, held_out=True, evaluate_every=2)
    train_vae.run(config)
    lines = read_log(tmp_path)
    names = {"psnr", "ssim", "ssim_1", "ssim_2", "ssim_3", "ssim_4", "ssim_margin"}
    expected = {f"eval/{kind}/{name}" for kind in ("raw", "ema") for name in names}
    found = [{name for name in line if name.startswith("eval/")} for line in lines]
    assert found == [set(), expected, expected]  # every second step, and the last
    assert lines[-1]["eval/raw/psnr"] != lines[-1]["eval/ema/psnr"]
    saved = VideoVAE.from_pretrained(tmp_path / "checkpoints" / "step-00000003" / "ema")
    held_out = HeldOut(
        fixed_clips(config.held_out), config.num_held_out_clips, 4, config.metric_networks
    )
    scores = held_out.scores(saved.reconstruct, torch.device("cpu"))
    assert_close(scores["psnr"], lines[-1]["eval/ema/psnr"])
    assert 0 < lines[-1]["seconds/data"] < lines[-1]["seconds_per_step"]
    assert lines[-1]["memory_gb"] > 0.01


def test_evaluating_and_recomputing_do_not_change_what_is_learned(shards, tmp_path):
    train_vae.run(gan_run(tmp_path / "plain", shards, steps=3, start=0))
    watched = gan_run(
        tmp_path / "watched", shards, steps=3, start=0, held_out=True, evaluate_every=1
    )
    train_vae.run(replace(watched, num_previews=1))
    plain, seen = (training_run(tmp_path / name) for name in ("plain", "watched"))
    for x, y in zip(plain["log"], seen["log"], strict=True):
        assert x == {name: value for name, value in y.items() if name in x}
    assert_same(plain, {**seen, "log": plain["log"]})
    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard")).Reload()
    shown = [image.step for tag in events.Tags()["images"] for image in events.Images(tag)]
    assert shown == [2, 3]  # previews, at every checkpoint
    recomputed = gan_run(tmp_path / "recomputed", shards, steps=3, start=0)
    train_vae.run(replace(recomputed, activation_checkpointing=True))
    for x, y in zip(read_log(tmp_path / "plain"), read_log(tmp_path / "recomputed"), strict=True):
        assert_close(x["loss"], y["loss"], rtol=1e-5, atol=0)


def test_a_dry_run_prints_the_plan_and_writes_nothing(shards, tmp_path, capsys, monkeypatch):
    config = gan_run(tmp_path / "run", shards, steps=10, keep=1, keep_every=4, micro_batch_size=2)
    assert train_vae.run(replace(config, dry_run=True)) is None
    text = capsys.readouterr().out
    parameters = sum(p.numel() for p in VideoVAE(MODEL).parameters()) / 1e6
    for words in (
        f"model: {parameters:.2f} M parameters",
        "discriminator: 0.03 M parameters, trained from step 2 on",
        "steps: 0 done, 10 to come",
        "4 clips = 1 processes x 4, 2 at once",
        "data: 0 clips seen, 40 to come, 6.7 epochs of 6",
        "checkpoints: 5 to come, 3 of them stay",
        "GB in one step of a process with all modules trained",
        "GB at most in one step with all modules trained, on cpu (whole process)",
    ):
        assert words in text
    assert not (tmp_path / "run").exists()
    train_vae.run(replace(config, train=replace(config.train, steps=3)))
    monkeypatch.setattr("engine.dry_run.estimate_memory", lambda *_: (10**15, 0))
    train_vae.run(replace(config, dry_run=True))
    text = capsys.readouterr().out
    assert "steps: 3 done, 7 to come" in text
    assert "data: 12 clips seen, 28 to come" in text
    assert "memory, measured: skipped, a step would not fit" in text


def test_mistakes_of_the_gan_stage_are_refused_when_it_is_configured(shards, tmp_path):
    config = gan_run(tmp_path / "run", shards)
    deep = replace(config.adversarial, discriminator=DiscriminatorConfig(channels=16, layers=3))
    with pytest.raises(ValueError, match=r"at least 24 x 24, got 16 x 16"):
        replace(config, adversarial=deep)
    with pytest.raises(ValueError, match="no data in held_out"):
        gan_run(tmp_path / "run", shards, evaluate_every=2)
    with pytest.raises(ValueError, match="architecture='E': use one of baseline"):
        replace(config, architecture="E")
    with pytest.raises(ValueError, match="precision=fp16 is not supported with a GAN"):
        gan_run(tmp_path / "run", shards, precision="fp16")
    with pytest.raises(ValueError, match="LPIPS with alex needs at least 31 x 31"):
        replace(config, loss=VAELossConfig(perceptual="alex"))


@pytest.fixture
def command(shards, tmp_path, monkeypatch, capsys):
    """Give flags to the GAN stage's command; returns its exit code and what it says at last."""
    VideoVAE(replace(MODEL, z_dim=8)).save_pretrained(tmp_path / "other")
    arguments = as_command(gan_run("run", shards), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", "nowhere")

    def run_command(*flags):
        monkeypatch.setattr("sys.argv", [*arguments, *flags])
        code = exit_code(TrainVAE, train_vae.run)
        return code, capsys.readouterr().err

    return run_command


BUCKET = '{"buckets": [{"frames": %s, "height": 16, "width": 16, "batch_size": %s}]}'


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--init_from=other"],
            "other: these start weights do not fit the model: z_dim was 8, now 4",
        ),
        (["--init_from=/nowhere"], "/nowhere: no VideoVAE here"),
        (["--buckets", BUCKET % (101, 4)], "bucket 101x16x16: "),
        (["--buckets", BUCKET % (5, 8)], "bucket 5x16x16: the data set has 6 items, fewer"),
        (["--loss.perceptual=vgg"], "no vgg16-397923af.pth found"),
        (["--adversarial.start_step=6"], "start_step=6 is not before the end of the run"),
        (["--train.micro_batch_size=3"], "micro_batch_size=3 does not divide the 4 clips"),
        (["--held_out.folder=nowhere"], "nowhere"),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2_before_the_first_step(
    flags, message, command, tmp_path
):
    code, error = command(*flags)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [[], ["--buckets", BUCKET % (5, 4)]])
def test_processes_that_do_not_divide_a_batch_are_refused(flags, command, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "scripts.train_vae.training_accelerator",
        lambda config: SimpleNamespace(num_processes=3, process_index=0),
    )
    code, error = command(*flags)
    assert code == 2
    assert error == (
        "error: 3 processes do not divide the global batch of 4. Start 2 processes or use a global "
        "batch of 6.\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture
def new_accelerator():
    """Lets a process change the precision, which Accelerate fixes once."""
    yield lambda: AcceleratorState._reset_state(reset_partial_state=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_bf16_trains_float32_weights_to_nearly_the_same_losses(shards, tmp_path, new_accelerator):
    for precision in ("no", "bf16"):
        new_accelerator()
        train_vae.run(gan_run(tmp_path / precision, shards, steps=2, start=0, precision=precision))
    for x, y in zip(read_log(tmp_path / "no"), read_log(tmp_path / "bf16"), strict=True):
        for name in ("loss", "mae", "discriminator/loss"):
            assert x[name] != y[name]
            assert_close(x[name], y[name], rtol=0.02, atol=0)
        assert y["skipped_steps"] == 0
    assert {value.dtype for value in weights(tmp_path / "bf16").values()} == {torch.float32}


def test_the_debug_chain_runs_from_stage_to_stage(shards, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    assert [file.stem for file in DEBUG] == ["0_image", "1_video", "2_video_larger", "3_gan"]
    for file in DEBUG:
        options = [
            "--train.steps=2",
            "--train.save_every=2",
            "--train.log_every=1",
            "--num_previews=1",
        ]
        options += [f"--data.folder={shards}", "--model.z_dim=4", f"--held_out.folder={shards}"]
        options += [
            "--data.short_clips=loop",
            "--held_out.short_clips=loop",
            "--num_held_out_clips=1",
        ]
        options += ["--adversarial.start_step=1"] if file.stem == "3_gan" else []
        export = train_vae.run(parse(TrainVAE, ["--config", str(file), *options]))
        assert export == Path(f"runs/vae/debug/ivvae_z4/{file.stem}/export")
        assert (export / "model.safetensors").exists()
    assert "inflated from the image VAE" in caplog.text
    assert "all weights are from runs/vae/debug/ivvae_z4/1_video/export" in caplog.text
    assert "discriminator: all weights are new" in caplog.text
    assert "discriminator/loss" in read_log(export.parent)[-1]


@pytest.fixture(scope="module")
def debug_configs():
    return [parse(TrainVAE, ["--config", str(file)]) for file in DEBUG]


@pytest.mark.parametrize("row", PRESETS)
def test_every_row_goes_through_the_debug_chain(row, debug_configs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for config in debug_configs:
        config = replace(config, architecture=row, model=replace(MODEL, z_dim=8)).named()
        assert config.train.folder.startswith(f"runs/vae/debug/{row}_z8/")
        model = initial_model(
            config.video_config, image=config.stage == "image", source=config.init_from
        )
        export = Path(config.train.folder) / "export"
        model.save_pretrained(export)
        expected = VAEConfig.preset(row, **{**asdict(MODEL), "z_dim": 8, **PRESETS[row]})
        expected = replace(expected, dim=PRESETS[row].get("dim", 64) // 16)
        assert model.config == (expected.image() if config.stage == "image" else expected)


def test_the_baseline_is_trained_through_the_debug_chain(
    shards, debug_configs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for config in debug_configs:
        data = replace(config.data, folder=str(shards), short_clips="loop", height=16, width=16)
        gan = config.adversarial
        if gan is not None:
            gan = replace(gan, start_step=0, discriminator=DISCRIMINATOR)
        config = replace(
            config,
            architecture="baseline",
            model=MODEL,
            data=data,
            buckets=None,
            adversarial=gan,
            held_out=None,
            num_previews=0,
            train=replace(config.train, steps=1, evaluate_every=None),
        )
        export = train_vae.run(config)
        assert read_json(export / "config.json")["branches"] == 1


@pytest.mark.parametrize("row", PRESETS)
def test_every_row_of_the_ablation_is_one_override(row):
    file = ROOT / "configs" / "vae" / "1_video_256.yaml"
    config = parse(TrainVAE, ["--config", str(file), f"--architecture={row}", "--model.z_dim=8"])
    assert config.video_config == VAEConfig.preset(row, z_dim=8)
    assert config.named().train.folder == f"runs/vae/{row}_z8/1_video_256"
    assert config.named().init_from == f"runs/vae/{row}_z8/0_image_256/export"
    half = replace(config, model=replace(config.model, dim=32)).video_config
    assert half.dim == config.video_config.dim // 2
