"""Each regularizer by its closed form, and in real runs: mixed clips, resumed, two processes."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from common.cli import parse
from common.local_correlation import local_correlation
from data.clips.batches import Bucket, BucketConfig
from data.clips.dataset import ClipConfig
from engine.losses import StepInfo
from engine.run_folder import read_log
from scripts import train_vae
from scripts.train_vae import TrainVAE
from tests.builders.packed import pack
from tests.builders.processes import run_ranks
from tests.builders.training_runs import MODEL, SIZE, gan_run, video_run, weights
from vae import DiagonalGaussian, VAEConfig, VideoVAE
from vae.comparators.diffusers_vae import DiffusersConfig
from vae.edits import pooled, turned
from vae.losses import REFERENCE_VALUES, VAELoss, VAELossConfig
from vae.regularizers import (
    Equivariance,
    FrameDifference,
    LatentMasking,
    LocalCorrelation,
    PredictedGroups,
    RegularizerConfig,
    Regularizers,
    ScaleEquivariance,
)

CONFIG = VAEConfig(z_dim=4)
L1 = VAELoss(VAELossConfig(perceptual="none", kl_weight=0))
EVERYTHING = RegularizerConfig(
    scale_equivariance=ScaleEquivariance(factors=(2,)),
    equivariance=Equivariance(min_scale=0.5),
    local_correlation=LocalCorrelation(),
    masking=LatentMasking(probabilities=(0.25, 0.25, 0.25, 0.25)),
    predicted_groups=PredictedGroups(),
    frame_difference=FrameDifference(),
)


@dataclass
class Pooling:
    """A linear encoder, means of 8 x 8 pixels of every 4th frame, and its nearest decoder."""

    config = VAEConfig(z_dim=3, branches=1)
    mask_token: nn.Parameter | None = None

    def encode(self, x):
        return F.avg_pool3d(x[:, :, ::4], (1, 8, 8))

    def decode(self, z, frames):
        nearest = F.interpolate(z, scale_factor=(4, 8, 8), mode="nearest")
        return nearest[:, :, 3:][:, :, :frames]


def info(step, seed=0):
    return StepInfo(seed, step, range(1))


def scale_loss(x, config):
    """The loss of the second pair alone, for the pooling autoencoder."""
    model = Pooling()
    regularizers = Regularizers(config, model)
    edits = regularizers.edits(x.shape[2:], info(0))
    decoded = [model.decode(*each) for each in edits.latents(model.encode(x), None)]
    posterior = DiagonalGaussian(model.encode(x), torch.zeros_like(model.encode(x)))
    return regularizers.terms(L1, decoded, edits.videos(x), posterior)


def test_a_pooling_autoencoder_is_scale_equivariant():
    coarse = torch.rand(2, 3, 1, 2, 2).repeat_interleave(16, 3).repeat_interleave(16, 4)
    config = RegularizerConfig(scale_equivariance=ScaleEquivariance(weight=0.5, factors=(2,)))
    values = scale_loss(coarse.repeat(1, 1, 9, 1, 1), config)
    assert_close(values["scale_equivariance"], torch.tensor(0.0), atol=1e-6, rtol=0)
    assert values["loss"] < 1
    fine = torch.rand(2, 3, 9, 32, 32)
    values = scale_loss(fine, config)
    down = pooled(fine, 2, 2)  # the encoder is linear, so down(z) is its latent
    z = pooled(Pooling().encode(fine), 2, 2)
    expected = (Pooling().decode(z, 5) - down).abs().mean()
    assert_close(values["scale_equivariance"], expected)
    assert_close(values["loss"], 0.5 * REFERENCE_VALUES * expected)


def test_clips_are_pooled_where_the_latent_and_the_model_allow_it():
    both = ScaleEquivariance()
    assert both.choices(CONFIG, (17, 64, 64)) == [(2, 2), (4, 4)]
    assert both.choices(CONFIG, (9, 64, 48)) == [(2, 2)]
    assert both.choices(CONFIG, (13, 64, 64)) == [(1, 2), (1, 4)]  # 3 groups
    assert both.choices(CONFIG, (1, 64, 64)) == [(1, 2), (1, 4)]
    cogvideox = DiffusersConfig(model="cogvideox")  # which takes no 5 frames
    assert both.choices(cogvideox, (17, 64, 64)) == [(2, 2), (1, 4)]
    x = torch.arange(5.0).view(1, 1, 5, 1, 1).repeat(1, 1, 1, 2, 2)
    assert_close(pooled(x, 2, 2).flatten(), torch.tensor([0, 1.5, 3.5]))


def test_turning_latents_and_pixels_is_the_same_for_a_pooling_encoder():
    x = torch.rand(1, 3, 5, 32, 16)
    for quarters in range(4):
        latent = turned(F.avg_pool3d(x, (1, 8, 8)), quarters, 1.0, unit=1)
        assert_close(F.avg_pool3d(turned(x, quarters, 1.0, unit=8), (1, 8, 8)), latent)
    assert turned(x, 1, 0.5, unit=8).shape == (1, 3, 5, 8, 16)
    assert turned(F.avg_pool3d(x, (1, 8, 8)), 1, 0.5, unit=1).shape == (1, 3, 5, 1, 2)
    flat = torch.full((1, 3, 2, 32, 16), 0.3)
    assert_close(turned(flat, 3, 0.4, unit=8).unique(), torch.tensor([0.3]))


def test_half_of_the_steps_are_turned_by_every_quarter_and_scale():
    draws = [Equivariance().draw(0, step) for step in range(2000)]
    turns = [draw for draw in draws if draw is not None]
    assert abs(len(turns) - 1000) < 100
    assert {quarters for quarters, _ in turns} == {0, 1, 2, 3}
    scales = torch.tensor([scale for _, scale in turns])
    assert scales.min() < 0.26
    assert scales.max() > 0.99
    assert_close(scales.mean().item(), 0.625, atol=0.02, rtol=0)
    assert draws[7] == Equivariance().draw(0, 7) != Equivariance().draw(1, 7)


def test_local_correlation_of_noise_and_of_flat_clips():
    torch.manual_seed(0)
    noise = local_correlation(torch.randn(2, 16, 9, 32, 32))
    assert abs(noise) < 5 / math.sqrt(
        15 * 16 * 16 * 2 * 28
    )  # standard error of the mean over all pairs
    flat = torch.randn(8, 16, 1, 1, 1).expand(8, 16, 5, 4, 4)
    assert_close(local_correlation(flat), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert_close(local_correlation(3 * flat[:, :, :1] + 7), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_local_correlation_is_the_mean_of_pairs_and_has_gradients_of_positions_alone():
    torch.manual_seed(0)
    z = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64)
    x = (z - z.mean((0, 2, 3, 4), keepdim=True)) / z.std((0, 2, 3, 4), keepdim=True, correction=0)
    means = []
    for part in (x[:, :, :1], x[:, :, 1:]):
        pairs = []
        for clip in part:
            for left in (0, 2):
                window = clip[:, :, :, left : left + 2].flatten(1)  # z and positions
                r = torch.corrcoef(window.T)
                pairs.append(r[~torch.eye(len(r), dtype=torch.bool)].mean())
        means.append(torch.stack(pairs).mean())
    assert_close(local_correlation(z), torch.stack(means).mean(), rtol=1e-4, atol=1e-5)
    leaf = z.clone().requires_grad_()
    local_correlation(leaf).backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() > 0
    flat = torch.randn(8, 16, 1, 1, 1).expand(8, 16, 5, 4, 4)
    posterior = DiagonalGaussian(flat, flat)
    config = RegularizerConfig(local_correlation=LocalCorrelation(weight=2, threshold=0.5))
    regularizers = Regularizers(config, Pooling())
    assert regularizers.terms(L1, [], [], posterior)["loss"] == 0  # above the threshold


def test_masks_hide_the_drawn_share_in_blocks():
    shares = set()
    for step in range(100):
        mask = LatentMasking(block=2).mask((4, 8, 8), 0, step)
        cells = mask.unfold(0, 2, 2).unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
        assert torch.equal(cells.all(-1), cells.any(-1))
        shares.add(mask.float().mean().item())
    assert shares == {0, 0.25, 0.5, 0.75}
    assert LatentMasking(block=2).mask((5, 3, 7), 0, 0).shape == (5, 3, 7)
    masked = [LatentMasking().mask((2, 2, 2), 0, step).any() for step in range(1000)]
    assert abs(sum(masked) - 300) < 60
    with pytest.raises(ValueError, match=r"probabilities=\(1.0,\) .* 1"):
        LatentMasking(probabilities=(1.0,))


def test_a_ratio_of_0_changes_nothing_to_the_bit_and_a_hidden_latent_is_the_token():
    model = VideoVAE(MODEL)
    config = RegularizerConfig(masking=LatentMasking(ratios=(0.0,), probabilities=(1.0,)))
    regularizers = Regularizers(config, model)
    x, noise = torch.rand(1, 3, 9, 16, 16), torch.randn(1, 4, 3, 2, 2)
    edits = regularizers.edits((9, 16, 16), info(0))
    plain = model(x, noise)[0]
    assert_close(model(x, noise, edits)[0][0], plain, rtol=0, atol=0)
    model.mask_token.data += 1
    assert_close(model(x, noise, edits)[0][0], plain, rtol=0, atol=0)
    edits = replace(edits, mask=torch.ones(3, 2, 2, dtype=torch.bool))
    hidden = model.frames(torch.ones(1, 4, 3, 2, 2), 9)
    assert_close(model(x, noise, edits)[0][0], hidden, rtol=0, atol=0)


def test_dropped_groups_leave_the_frames_before_them_as_they_were():
    """Between groups only the carry passes on, and that forward."""
    model = VideoVAE(MODEL)
    term = PredictedGroups(probability=1.0, max_groups=2)
    regularizers = Regularizers(RegularizerConfig(predicted_groups=term), model)
    x, noise = torch.rand(1, 3, 13, 16, 16), torch.randn(1, 4, 4, 2, 2)
    plain, found = model(x, noise)[0], set()
    for step in range(8):
        edits = regularizers.edits((13, 16, 16), info(step))
        dropped = int(edits.mask[:, 0, 0].sum())
        found.add(dropped)
        kept = 13 - 4 * dropped
        y = model(x, noise, edits)[0][0]
        assert_close(y[:, :, :kept], plain[:, :, :kept], rtol=1e-5, atol=1e-5)
        assert (y[:, :, kept:] - plain[:, :, kept:]).abs().max() > 1e-3
    assert found == {1, 2}
    assert not term.mask((1, 2, 2), 0, 0).any()  # an image stays


def test_frame_difference_by_hand():
    video = torch.tensor([0.0, 0.2, 0.6]).view(1, 1, 3, 1, 1).expand(1, 3, 3, 2, 2)
    assert_close(FrameDifference()(video + 0.4, video), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(FrameDifference()(torch.zeros_like(video), video), torch.tensor(0.3))


def test_kl_is_that_of_the_whole_clip_where_a_smaller_one_is_compared():
    loss = VAELoss(VAELossConfig(perceptual="none", kl_weight=0.1))
    latent = torch.ones(1, 4, 2, 4, 4)
    posterior = DiagonalGaussian(latent, torch.zeros_like(latent))
    whole, small = torch.zeros(1, 3, 5, 32, 32), torch.zeros(1, 3, 5, 16, 16)
    expected = loss(whole, whole, posterior)["loss"]
    assert expected > 0
    assert_close(loss(small, small, posterior, encoded=whole)["loss"], expected)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("data") / "shards", [12, 14, 16, 18, 20, 22])


def mixed(folder, shards, steps=4, **values):
    """A GAN run of images and videos with every term."""
    config = gan_run(folder, shards, steps, start=1, discriminator_rate=1e-4, **values)
    larger = {"height": 32, "width": 32}
    sizes = (Bucket(frames=1, batch_size=4, **larger), Bucket(frames=9, batch_size=2, **larger))
    buckets = BucketConfig(buckets=sizes, enlarge=True)
    return replace(config, buckets=buckets, regularizers=EVERYTHING)


def test_a_resumed_run_with_every_term_equals_a_straight_one_bit_for_bit(shards, tmp_path):
    train_vae.run(mixed(tmp_path / "straight", shards))
    train_vae.run(mixed(tmp_path / "resumed", shards, steps=3))
    train_vae.run(mixed(tmp_path / "resumed", shards))
    a, b = (tmp_path / name for name in ("straight", "resumed"))
    assert_close(weights(a), weights(b), rtol=0, atol=0)
    for name in ("loss", "gan", "scale_equivariance", "grad_norm"):
        assert [x.get(name) for x in read_log(a)] == [x.get(name) for x in read_log(b)]
    values = {name for line in read_log(tmp_path / "straight") for name in line}
    assert values >= {"scale_equivariance", "local_correlation", "frame_difference", "gan"}
    assert "mask_token" in weights(tmp_path / "straight")
    export = tmp_path / "straight" / "export"
    assert "mask_token" not in VideoVAE.from_pretrained(export).state_dict()


def test_two_processes_learn_what_one_does_with_ddp_and_fsdp(shards, tmp_path):
    runs = {
        name: replace(mixed(tmp_path / name, shards, steps=2, learning_rate=1e-4), adversarial=None)
        for name in ("one", "ddp", "fsdp")
    }
    ddp = {"ACCELERATE_USE_FSDP": "false"}
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    run_ranks(2, train_vae.run, runs["ddp"], **ddp)
    run_ranks(2, train_vae.run, runs["fsdp"], **fsdp)
    train_vae.run(runs["one"])
    for name in ("ddp", "fsdp"):
        for x, y in zip(read_log(tmp_path / "one"), read_log(tmp_path / name), strict=True):
            for key in {"loss", "mae", "scale_equivariance", "frame_difference"} & x.keys():
                assert_close(x[key], y[key], rtol=1e-4, atol=0, msg=f"{name} {key}")


def test_terms_that_never_act_leave_training_the_same_to_the_bit(shards, tmp_path):
    train_vae.run(video_run(tmp_path / "plain", shards, steps=2))
    config = video_run(tmp_path / "off", shards, steps=2)
    off = RegularizerConfig(
        equivariance=Equivariance(probability=0.0), predicted_groups=PredictedGroups(probability=0)
    )
    train_vae.run(replace(config, regularizers=off))
    found = weights(tmp_path / "off")
    assert not found.pop("mask_token").any()
    assert_close(found, weights(tmp_path / "plain"), rtol=0, atol=0)


def test_a_dry_run_estimates_a_step_with_every_term(shards, tmp_path, capsys):
    train_vae.run(replace(mixed(tmp_path / "run", shards), dry_run=True))
    assert "GB in one step of a process" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--regularizers.scale_equivariance.factors=[4]"], r"factors=\(4,\) divides the 2 x 2"),
        (["--regularizers.equivariance.min_scale=0"], "min_scale=0.0 must be above 0"),
        (["--regularizers.masking.ratios=[0.5]"], "must sum to 1, one for each of ratios"),
        (["--regularizers.local_correlation={}", "--data.height=8"], "a latent of at least 2 x 2"),
        (["--regularizers.contrastive={}"], "contrastive"),
        (["--regularizers.equivariance={}", "--adversarial={}"], "at least .*, got 8 x 8"),
    ],
)
def test_terms_that_do_not_fit_are_refused_before_the_first_step(flags, message, shards, tmp_path):
    clips = ClipConfig(folder=str(shards), frames=5, **SIZE)
    base = ["--train.folder", str(tmp_path / "run"), "--train.steps=1", "--loss.perceptual=none"]
    base += ["--train.global_batch_size=1", f"--data.folder={clips.folder}", "--data.frames=5"]
    base += ["--data.height=16", "--data.width=16", "--model.z_dim=4"]
    with pytest.raises(ValueError, match=message):
        parse(TrainVAE, [*base, *flags])
