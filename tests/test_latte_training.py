"""Training Latte: joint batches, objectives, what is measured beside, what is refused."""

import shutil
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.testing import assert_close

from common.cli import parse
from common.seeding import noise
from data.clips.dataset import PackedClips
from data.video.decode import read_frames
from engine.config import TrainConfig
from engine.losses import StepInfo
from engine.run_folder import read_log
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.classifier import ClassifierConfig, ClipClassifier
from eval.features.extractors import load_classifier
from eval.features.feature_cache import Extraction, extract_features
from eval.metrics.frechet import frechet_from_features
from eval.protocols.training_scores import SampleFVDConfig
from latte import Latte
from latte.config import LatteOptions
from latte.diffusion import DiffusionConfig, GaussianDiffusion
from latte.flow import FlowConfig, RectifiedFlow
from latte.samplers import SamplerConfig
from latte.training import JointBatch, LatteLoss
from latte.training_config import ImageOptions
from latte.training_metadata import TrainingMetadata
from scripts import cache_latents, sample, train_latte
from scripts.train_latte import TrainLatte
from tests.builders.packed import pack
from tests.builders.tiny_latte import TINY, awake
from tests.builders.vectors import normal
from vae import VAEConfig, VideoVAE

SIZE = {"height": 16, "width": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Packed videos, a VAE, and its latents of clips and of images."""
    root = tmp_path_factory.mktemp("made")
    shards = pack(root, [12, 14, 16, 18, 20, 22])
    torch.manual_seed(0)
    VideoVAE(
        VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
    ).save_pretrained(root / "vae")
    ClipClassifier(ClassifierConfig(num_classes=2, width=8)).save_pretrained(root / "features")
    for name, frames in (("latents", 9), ("images", 1)):
        cache(root / "vae", shards, root / name, frames)
    return root


def cache(vae, shards, out, frames):
    data = PackedClips(folder=str(shards), frames=frames, **SIZE)
    cache_latents.run(cache_latents.CacheLatents(vae=str(vae), data=data, out=str(out), workers=0))


def config(made, folder, steps=4, conditional=True, **values):
    train = TrainConfig(
        folder=str(folder),
        steps=steps,
        global_batch_size=4,
        log_every=1,
        save_every=2,
        learning_rate=1e-3,
        evaluate_every=values.pop("evaluate_every", None),
        micro_batch_size=values.pop("micro_batch_size", None),
    )
    model = LatteOptions(
        size="custom", hidden_size=16, depth=2, num_heads=2, class_conditional=conditional
    )
    return TrainLatte(train=train, latents=str(made / "latents"), **{"model": model, **values})


def joint(made, per_step):
    return ImageOptions(latents=str(made / "images"), per_step=per_step)


def assert_same_run(a, b, rtol=0.0):
    assert [x["step"] for x in read_log(a)] == [x["step"] for x in read_log(b)]
    for x, y in zip(read_log(a), read_log(b), strict=True):
        assert_close(x["loss"], y["loss"], rtol=rtol, atol=0)
        assert_close(x["grad_norm"], y["grad_norm"], rtol=100 * rtol, atol=0)


def test_training_ends_with_the_export_the_loss_and_a_command_that_samples(made, tmp_path, caplog):
    caplog.set_level("INFO")
    shown = {"num_previews": 1, "preview_sampler": SamplerConfig(method="ddim", steps=2)}
    train_latte.run(config(made, tmp_path / "run", steps=1, vae=str(made / "vae"), **shown))
    first, score, last = [r.message for r in caplog.records if r.name == "engine.train"]
    assert first == f"{tmp_path}/run/export: the averaged weights of step 1"
    assert score.startswith("  loss ")
    following = parse(sample.Sample, last.removeprefix("next: python scripts/sample.py ").split())
    assert (following.latte, following.vae) == (f"{tmp_path}/run/export", str(made / "vae"))


def test_images_are_spread_evenly_over_the_clips():
    for clips, images in ((32, 20), (4, 4), (4, 10), (3, 1)):
        batch = JointBatch(clips, images, 5)
        counts = [batch.count(p) for p in range(clips)]
        assert sum(counts) == images
        assert max(counts) == batch.per_clip
        assert max(counts) - min(counts) <= 1
    halves = [
        sum(JointBatch(32, 20, 5).count(p) for p in part) for part in (range(16), range(16, 32))
    ]
    assert halves == [10, 10]


def test_the_batchs_loss_is_the_mean_over_frames_and_images_that_count():
    batch = JointBatch(4, 3, 2)
    values = torch.rand(4, 3)
    weight = batch.frame_weight(range(4))
    counted = [values[p, i] for p in range(4) for i in range(3) if i < 2 or i - 2 < batch.count(p)]
    assert len(counted) == 4 * 2 + 3
    assert_close((values * weight).sum(dim=1).mean(), torch.stack(counted).mean())
    parts = torch.cat([batch.frame_weight(range(2)), batch.frame_weight(range(2, 4))])
    assert torch.equal(parts, weight)
    assert JointBatch(4, 8, 2).frame_weight(range(4)) is None  # all places are taken


def joint_loss(positions, batch, images=3):
    """Loss of part of a batch of 4 clips with 3 images."""
    model = awake(TINY)
    loss = LatteLoss(GaussianDiffusion(), TINY, JointBatch(4, images, 3), Accelerator(cpu=True))
    part = {name: value[positions.start : positions.stop] for name, value in batch.items()}
    part |= loss.draw(part, 1, 5, positions)
    values, _ = loss(model, part, StepInfo(seed=1, step=5, positions=positions))
    return values["loss"].item()


def joint_batch():
    return {
        "latent": normal(3, (4, 3, 3 + 1, 4, 6)),
        "label": torch.arange(4),
        "image_labels": torch.tensor([[4], [3], [2], [1]]),
    }


def test_a_joint_batch_can_be_shared_out_anyhow():
    batch = joint_batch()
    whole = joint_loss(range(4), batch)
    halves = [joint_loss(part, batch) for part in (range(2), range(2, 4))]
    assert_close(sum(halves) / 2, whole, rtol=1e-5, atol=0)


def test_images_that_do_not_count_and_no_others_are_without_effect():
    whole, counts = joint_loss(range(4), joint_batch()), JointBatch(4, 3, 3)
    for p in range(4):
        for name in ("latent", "image_labels"):
            moved = joint_batch()
            moved[name][p, ..., -1:] = 0 if name == "image_labels" else moved[name][p, ..., -1:]
            if name == "latent":
                moved[name][p, :, -1] += 1
            changed = abs(joint_loss(range(4), moved) - whole) > 1e-6
            assert changed == (counts.count(p) == 1), (p, name)


def test_a_joint_run_resumes_exactly_and_equals_its_micro_batches(made, tmp_path):
    images = {"images": joint(made, 3)}
    train_latte.run(config(made, tmp_path / "straight", **images))
    train_latte.run(config(made, tmp_path / "stopped", steps=2, **images))
    train_latte.run(config(made, tmp_path / "stopped", **images))
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    last = "checkpoints/step-00000004"
    for file in ("export", f"{last}/ema", last):  # averaged, averaged, raw
        ours, theirs = (
            load_file(tmp_path / run / file / "model.safetensors")
            for run in ("straight", "stopped")
        )
        assert_close(ours, theirs, rtol=0, atol=0)
    train_latte.run(config(made, tmp_path / "micro", micro_batch_size=2, **images))
    assert_same_run(tmp_path / "straight", tmp_path / "micro", rtol=1e-5)
    train_latte.run(config(made, tmp_path / "without", steps=1))
    assert read_log(tmp_path / "without")[0]["loss"] != read_log(tmp_path / "straight")[0]["loss"]


@pytest.mark.parametrize(
    "options",
    [
        {"diffusion": DiffusionConfig(prediction="v", min_snr_gamma=5.0)},
        {"flow": FlowConfig(mean=0.5)},
    ],
)
def test_samples_are_drawn_by_the_process_that_was_trained(made, tmp_path, options):
    export = train_latte.run(config(made, tmp_path / "run", steps=1, **options))
    metadata = TrainingMetadata.load(export)
    assert metadata.diffusion == options.get("diffusion", DiffusionConfig())
    assert metadata.flow == options.get("flow")
    assert isinstance(metadata.process, RectifiedFlow if "flow" in options else GaussianDiffusion)
    assert Latte.from_pretrained(export).config.learn_sigma == ("flow" not in options)
    settings = {
        "latte": str(export),
        "vae": str(made / "vae"),
        "out": str(tmp_path / "out"),
        "num_clips": 1,
    }
    wrong, right = ("ddim", "euler") if "flow" in options else ("euler", "ddim")
    with pytest.raises(ValueError, match=f"method={wrong}, but this model is a"):
        sample.run(sample.Sample(**settings, sampler=SamplerConfig(method=wrong, steps=2)))
    assert not (tmp_path / "out").exists()
    sample.run(sample.Sample(**settings, sampler=SamplerConfig(method=right, steps=2)))
    assert (tmp_path / "out" / "clip-000000.mkv").exists()


def test_the_loss_by_quarter_is_that_of_fixed_times_and_noise():
    """A model that gives 0 has the squared target for a loss, at one time in each quarter."""
    process, seen = GaussianDiffusion(), []
    loss = LatteLoss(
        process, replace(TINY, num_classes=None), JointBatch(1, 0, 3), Accelerator(cpu=True)
    )
    x0 = normal(1, (3, 3, 4, 6))

    def zero(x, t, y, *_):
        seen.append(t)
        return torch.zeros_like(x)

    values = loss.quarters(zero, x0, 0, seed=3, index=7)
    assert (seen[0] // 250).tolist() == [0, 1, 2, 3]
    draw = noise((3, 3, 4, 6), 3, "evaluate", 7, range(4))
    assert_close(values, draw.square().flatten(1).mean(dim=1))
    assert torch.equal(values, loss.quarters(zero, x0, 0, seed=3, index=7))
    assert not torch.equal(values, loss.quarters(zero, x0, 0, seed=3, index=8))


def test_what_is_measured_of_raw_and_averaged_weights(made, tmp_path):
    """Quarters, previews, and the distance of a few samples, which is that of the same clips from
    sample.py, scored by eval_fvd.py's code."""
    fvd = SampleFVDConfig(
        real=str(made / "shards"), num_clips=3, batch_size=2, classifier=str(made / "features")
    )
    options = {"evaluate_every": 2, "vae": str(made / "vae"), "num_previews": 2}
    options |= {"preview_sampler": SamplerConfig(method="ddim", steps=2), "fvd": fvd}
    run = config(made, tmp_path / "run", steps=3, **options)
    train_latte.run(replace(run, train=replace(run.train, learning_rate=0.05)))
    lines = read_log(tmp_path / "run")
    assert ["eval/ema/mse" in line for line in lines] == [False, True, True]
    for kind in ("raw", "ema"):
        quarters = [lines[1][f"eval/{kind}/mse_quarter_{i}"] for i in (1, 2, 3, 4)]
        assert_close(sum(quarters) / 4, lines[1][f"eval/{kind}/mse"])
    assert lines[1]["eval/raw/mse"] != lines[1]["eval/ema/mse"]
    frame = read_frames(tmp_path / "run" / "samples" / "step-00000002.mp4", [0])[0]
    assert frame.shape == (2 * 16, 2 * 16, 3)  # two rows, two clips

    real = ClipSource(made / "shards", ClipProtocol(frames=9, **SIZE))
    values = []
    for kind in ("raw", "ema"):
        sample.run(
            sample.Sample(
                latte=str(tmp_path / "run" / "checkpoints" / "step-00000002"),
                weights=kind,
                vae=str(made / "vae"),
                out=str(tmp_path / kind),
                num_clips=3,
                sampler=options["preview_sampler"],
            )
        )
        fake = ClipSource(tmp_path / kind, ClipProtocol(frames=9), generated=True)
        network = load_classifier(made / "features")
        sets = [extract_features(x, network, Extraction()).values for x in (real, fake)]
        values.append(lines[1][f"eval/{kind}/fvd3_9f_features"])
        assert_close(values[-1], frechet_from_features(*sets), rtol=1e-3, atol=0)
    assert abs(values[0] / values[1] - 1) > 0.01


def test_a_dry_run_writes_nothing_and_tells_the_plan(made, tmp_path, capsys):
    options = {"dry_run": True, "activation_checkpointing": True, "images": joint(made, 3)}
    assert train_latte.run(config(made, tmp_path / "run", **options)) is None
    assert not (tmp_path / "run").exists()
    assert "steps: 0 done, 4 to come" in capsys.readouterr().out


def test_a_run_goes_on_with_checkpointing_switched_on(made, tmp_path):
    train_latte.run(config(made, tmp_path / "straight"))
    train_latte.run(config(made, tmp_path / "saving", steps=2))
    train_latte.run(config(made, tmp_path / "saving", activation_checkpointing=True))
    assert_same_run(tmp_path / "straight", tmp_path / "saving", rtol=1e-5)


def test_weights_to_start_from(made, tmp_path):
    export = train_latte.run(config(made, tmp_path / "first", steps=1))
    again = config(made, tmp_path / "second", steps=1, init_from=str(export))
    assert read_log(train_latte.run(again).parent)[0]["loss"] > 0
    other = replace(again.model, hidden_size=32)
    wrong = replace(config(made, tmp_path / "third", init_from=str(export)), model=other)
    with pytest.raises(ValueError, match="is of another size"):
        train_latte.run(wrong)
    assert not (tmp_path / "third").exists()


def test_latents_cached_anew_are_refused(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    train_latte.run(config(tmp_path / "made", tmp_path / "run", steps=2))
    manifest = tmp_path / "made" / "latents" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(ValueError, match=r"latents was .*latents \(.*now .*latents"):
        train_latte.run(config(tmp_path / "made", tmp_path / "run", steps=4))
    # and before weights of another size meet the checkpoint's
    other = VAEConfig(z_dim=2, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
    VideoVAE(other).save_pretrained(tmp_path / "other")
    shutil.rmtree(tmp_path / "made" / "latents")
    cache(tmp_path / "other", made / "shards", tmp_path / "made" / "latents", 9)
    with pytest.raises(ValueError, match=r"latents was .*latents \(.*now .*latents"):
        train_latte.run(config(tmp_path / "made", tmp_path / "run", steps=4))


def test_options_that_do_not_fit(made, tmp_path):
    with pytest.raises(ValueError, match="per_step=0 must be at least 1"):
        joint(made, 0)
    few = SampleFVDConfig(real=str(made / "shards"), classifier=str(made / "features"))
    with pytest.raises(ValueError, match="fvd: give vae too"):
        config(made, tmp_path, fvd=few)
    with pytest.raises(ValueError, match="num_clips=1 must be at least 2"):
        replace(few, num_clips=1)
    with pytest.raises(ValueError, match="i3d or classifier, not both"):
        replace(few, i3d="i3d.pt")
    scored = {"fvd": replace(few, classifier=None), "vae": str(made / "vae"), "evaluate_every": 2}
    with pytest.raises(ValueError, match="I3D"):
        train_latte.run(config(made, tmp_path, **scored))
    with pytest.raises(ValueError, match="flow replaces diffusion"):
        config(made, tmp_path, flow=FlowConfig(), diffusion=DiffusionConfig(prediction="v"))
    model = LatteOptions(learn_sigma=True)
    with pytest.raises(ValueError, match="a flow has no variance"):
        train_latte.run(config(made, tmp_path, flow=FlowConfig(), model=model))
    shown = {
        "vae": str(made / "vae"),
        "preview_sampler": SamplerConfig(method="ddim", guidance=2.0),
    }
    with pytest.raises(ValueError, match=r"guidance=2\.0 .*class-conditional"):
        train_latte.run(config(made, tmp_path, conditional=False, **shown))
    with pytest.raises(ValueError, match=r"shape \(4, 1, 2, 2\)"):
        train_latte.run(config(made, tmp_path, held_out=str(made / "images")))
    assert not list(tmp_path.iterdir())
