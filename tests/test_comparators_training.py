"""Training comparators: what they start from, GCConv in OD-VAE, what is refused."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from common.cli import parse
from data.clips.dataset import ClipConfig
from engine.config import TrainConfig
from engine.run_folder import read_log
from scripts import train_vae
from scripts.ablate import Ablate
from scripts.train_vae import TrainVAE
from tests.builders.packed import pack
from tests.builders.tiny_comparators import LIKE, distance, smallest, tiny, untrained, video
from vae import ImageVAE, VAEConfig, VideoVAE
from vae.adversarial import AdversarialConfig
from vae.checkpointing import enable_activation_checkpointing
from vae.comparators.base import Comparator
from vae.comparators.diffusers_vae import DiffusersConfig
from vae.comparators.od_vae import ODVAE, ODVAEConfig
from vae.comparators.training import initial_comparator
from vae.discriminator import DiscriminatorConfig
from vae.losses import VAELossConfig
from vae.posterior import START_LOGVAR
from vae.registry import GCCONV, OTHERS, comparator_config, load_vae
from vae.training import initial_model

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "vae"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("data"), [12, 14])


def config(shards, folder, row, **values) -> TrainVAE:
    clips = ClipConfig(folder=str(shards), frames=9, height=16, width=16)
    return TrainVAE(
        architecture=row,
        train=TrainConfig(
            folder=str(folder),
            steps=2,
            global_batch_size=2,
            log_every=1,
            save_every=2,
            evaluate_every=2,
            learning_rate=1e-4,
        ),
        data=clips,
        held_out=clips,
        num_held_out_clips=1,
        model=LIKE,
        loss=VAELossConfig(perceptual="none"),
        num_previews=1,
        **values,
    )


@pytest.mark.parametrize("name", [n for n in OTHERS if n not in ("cosmos", "mochi")])
def test_a_new_model_draws_near_its_mean(name):
    """As a new IV-VAE does; Cosmos draws nothing, and the last layer of Mochi's has no bias."""
    torch.manual_seed(0)
    model = initial_comparator(comparator_config(name, LIKE), None).eval()
    frames, height, width = smallest(model)
    posterior = model.encode(video(frames, height=height, width=width))
    deviation = (posterior.logvar / 2).exp()
    assert_close(deviation.mean(), torch.tensor(START_LOGVAR / 2).exp(), rtol=0.1, atol=0)
    assert posterior.mean.std() > 2 * deviation.mean()


def test_od_vae_is_fine_tuned_with_group_causal_convolutions(shards, tmp_path, caplog):
    start = tiny("od_vae")
    start.save_pretrained(tmp_path / "od_vae")
    wanted = config(shards, tmp_path / "run", GCCONV, init_from=str(tmp_path / "od_vae"))
    with caplog.at_level("INFO"):
        train_vae.run(wanted)
    assert "causal convolutions are group causal now" in caplog.text
    assert f"OD-VAE: all weights are from {tmp_path / 'od_vae'}" in caplog.text
    trained = load_vae(tmp_path / "run" / "export")
    assert isinstance(trained, ODVAE)
    assert trained.config.temporal == "group_causal"
    before, after = start.state_dict(), trained.state_dict()
    moved = {name: distance(after[name], before[name]) for name in before}
    assert max(moved.values()) > 0
    assert max(moved.values()) < 0.05  # two steps from those weights, not from others
    last = read_log(tmp_path / "run")[-1]
    assert {f"eval/ema/ssim_{i}" for i in (1, 2, 3, 4)} | {"eval/ema/ssim_margin"} <= last.keys()
    assert (tmp_path / "run" / "samples" / "step-00000002.mp4").exists()


def test_a_comparator_trains_with_a_discriminator(shards, tmp_path):
    gan = AdversarialConfig(discriminator=DiscriminatorConfig(channels=16, layers=1))
    train_vae.run(config(shards, tmp_path / "run", "opensora_v12", adversarial=gan))
    last = read_log(tmp_path / "run")[-1]
    assert 0 < last["gan_weight"] < 1e4
    assert load_vae(tmp_path / "run" / "export").config == comparator_config("opensora_v12", LIKE)


@pytest.mark.parametrize("name", ["cv_vae", "opensora_v12"])
def test_recomputing_activations_changes_no_gradient(name):
    gradients = []
    for recompute in (False, True):
        model = tiny(name).train()
        if recompute:
            enable_activation_checkpointing(model)
        convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv3d)]
        runs: list[object] = []
        for convolution in convolutions:
            convolution.register_forward_hook(lambda module, *_, runs=runs: runs.append(module))
        x, noise = video(5), torch.zeros(1, *model.config.latent_shape(5, 16, 24))
        model(x, noise)[0].square().mean().backward()
        assert (len(runs) > len(convolutions)) == recompute
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, value in gradients[0].items():
        assert_close(gradients[1][key], value, rtol=0, atol=0)


def test_official_weights_keep_their_scaling(tmp_path):
    config = comparator_config("od_vae", LIKE)
    official = ODVAE(ODVAEConfig(dim=config.dim, norm_groups=config.norm_groups, num_blocks=1))
    official.save_pretrained(tmp_path / "od")
    model = initial_comparator(config, f"od_vae:{tmp_path / 'od'}")
    assert model.config.latent_std == (1 / 0.18215,)
    assert model.training
    assert initial_comparator(config, None).config.latent_std == (1.0,)


def test_start_weights_that_do_not_fit_are_refused(tmp_path):
    wanted = comparator_config("od_vae", LIKE)
    like = VAEConfig(z_dim=4, dim=4, num_blocks=1)
    ImageVAE(like.image()).save_pretrained(tmp_path / "image")
    VideoVAE(like).save_pretrained(tmp_path / "video")
    for name, held in (("image", "ImageVAE"), ("video", "VideoVAE")):
        with pytest.raises(ValueError, match=f"holds {held}, but OD-VAE"):
            initial_model(wanted, image=False, source=str(tmp_path / name))
    with pytest.raises(ValueError, match="OD-VAE cannot be inflated"):
        initial_comparator(wanted, "ivvae:somewhere")
    tiny("cv_vae").save_pretrained(tmp_path / "cv")
    with pytest.raises(ValueError, match="holds a CVVAE, not a ODVAE"):
        initial_comparator(wanted, str(tmp_path / "cv"))
    untrained("od_vae", VAEConfig(z_dim=4, dim=8, num_blocks=1)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"do not fit the model: dim was 16, now 8"):
        initial_comparator(wanted, str(tmp_path / "wide"))
    tiny(GCCONV).save_pretrained(tmp_path / "gc")
    with pytest.raises(ValueError, match=r"temporal was .group_causal., now .causal."):
        initial_comparator(wanted, str(tmp_path / "gc"))


@pytest.mark.parametrize(
    ("row", "values", "message"),
    [
        ("od_vea", {}, "architecture='od_vea': use one of baseline, .*od_vae_gcconv"),
        ("od_vae", {"stage": "image"}, "architecture=od_vae: has no image stage"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused(tmp_path, row, values, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, tmp_path, row, **values)


def test_sizes_that_a_comparator_does_not_take_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"5 frames.* 1 \+ 8n. Use 1 or 9"):
        TrainVAE(
            architecture="cogvideox",
            train=TrainConfig(folder=str(tmp_path), steps=1, global_batch_size=1),
            data=ClipConfig(folder=str(tmp_path), frames=5, height=16, width=16),
            model=LIKE,
        )


def test_the_ablation_takes_comparators_as_rows(tmp_path):
    file = tmp_path / "video.yaml"
    file.touch()
    names = tuple(OTHERS)
    assert Ablate(folder=tmp_path, video=file, architectures=names).architectures == names
    with pytest.raises(ValueError, match=r"image_starts=\['od_vae'\]"):
        Ablate(folder=tmp_path, video=file, image=file, image_starts=("ivvae", "od_vae"))


@pytest.mark.parametrize("file", ["odvae_gcconv", "comparators/debug", "comparators/demo"])
def test_configs_are_valid(file):
    made = parse(TrainVAE, ["--config", str(CONFIGS / f"{file}.yaml")]).named()
    assert made.architecture in OTHERS
    assert f"{made.architecture}_z{made.model.z_dim}" in made.train.folder


def test_the_published_od_vae_fits_the_config_of_its_fine_tuning():
    config = parse(TrainVAE, ["--config", str(CONFIGS / "odvae_gcconv.yaml")])
    published = ODVAEConfig(temporal="group_causal", latent_std=(1.0,))
    assert config.video_config == published
    assert config.train.steps == 200_000


def test_small_models_have_norms_of_as_many_channels_as_large_ones():
    """One channel per group would take every channel's mean away, at the end the brightness."""
    for name in ("cv_vae", "od_vae", "opensora_v12", "cogvideox"):
        for dim in (4, 8, 16, 64):
            config = comparator_config(name, VAEConfig(z_dim=4, dim=dim))
            diffusers = isinstance(config, DiffusersConfig)
            groups = config.arguments["norm_num_groups"] if diffusers else config.norm_groups
            assert groups == dim // 2, name
    model: Comparator = untrained("cv_vae", VAEConfig(z_dim=4, dim=8, num_blocks=1))
    assert model.decoder.norm_out.num_channels // model.decoder.norm_out.num_groups == 4
