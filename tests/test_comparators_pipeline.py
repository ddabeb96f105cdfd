"""Every comparator through the whole chain: cache, Latte, sampling, reconstruction, evaluation."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from common.files import read_json
from data.clips.dataset import PackedClips
from data.latents.dataset import LatentDataset
from data.video.decode import read_frames
from data.video.encode import to_uint8
from engine.config import TrainConfig
from eval.features.classifier import ClassifierConfig, ClipClassifier
from latte import Latte
from latte.config import LatteOptions
from latte.samplers import SamplerConfig, sample
from latte.training_metadata import TrainingMetadata
from scripts import cache_latents, eval_fvd, eval_reconstruction, inspect_cache, train_latte
from scripts import sample as sampling
from tests.builders.packed import pack
from tests.builders.tiny_comparators import LIKE, tiny
from vae.base import VideoAutoencoder
from vae.comparators.base import Comparator
from vae.comparators.diffusers_table import ROWS
from vae.comparators.od_vae import ODVAE, to_group_causal
from vae.parts import encoder_hash
from vae.registry import GCCONV, OTHERS, comparator_config, load_vae

PAPER = ("cv_vae", "od_vae", "opensora_v12", "cogvideox", "wan", GCCONV)
LATER = tuple(name for name in ROWS if name not in PAPER)
CONFIGS = {name: comparator_config(name, LIKE) for name in OTHERS}
FRAMES = {name: config.valid_frames(9) for name, config in CONFIGS.items()}
FRAMES["opensora_v12"] = 10  # which latents alone do not tell
SIDE = {name: 2 * config.spatial_ratio for name, config in CONFIGS.items()}
SIZE = {"height": 16, "width": 16}
SCALING = {"latent_mean": (0.1, 0.2, 0.3, 0.4), "latent_std": (0.5, 1.5, 0.25, 2.0)}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Packed videos, a classifier in place of I3D, and a small export of every comparator."""
    folder = tmp_path_factory.mktemp("pipeline")
    pack(folder, [14, 16, 18])
    torch.manual_seed(0)
    ClipClassifier(ClassifierConfig(num_classes=2, width=8)).save_pretrained(folder / "tiny")
    for name in OTHERS:
        model = tiny(name, **(SCALING if name == "opensora_v12" else {}))
        model.save_pretrained(folder / name)
    return folder


def source(root: Path, name: str) -> str:
    return f"{name}:{root / name}"


def cached(root: Path, name: str, **changes) -> Path:
    clips = {"frames": FRAMES[name], "height": SIDE[name], "width": SIDE[name]}
    clips |= {key: changes.pop(key) for key in clips.keys() & changes.keys()}
    options = {
        "vae": source(root, name),
        "data": PackedClips(folder=str(root / "shards"), **clips),
        "out": str(root / name / "latents"),
        "workers": 0,
        **changes,
    }
    cache_latents.run(cache_latents.CacheLatents(**options))
    return Path(options["out"])


def trained(root: Path, name: str, latents: Path, **changes) -> Path:
    config = train_latte.TrainLatte(
        train=TrainConfig(
            folder=str(root / name / "latte"), steps=2, global_batch_size=2, save_every=2
        ),
        latents=str(latents),
        model=LatteOptions(
            size="custom", hidden_size=16, depth=2, num_heads=2, class_conditional=True
        ),
        vae=source(root, name),
        preview_sampler=SamplerConfig(method="ddim", steps=2),
        num_previews=1,
        num_held_out_clips=1,
        **changes,
    )
    folder = train_latte.run(config)
    assert folder is not None
    assert (root / name / "latte" / "samples" / "step-00000002.mp4").exists()
    return folder


SAMPLER = SamplerConfig(method="ddim", steps=2)


def sampled(root: Path, name: str, latte: Path, **changes) -> Path:
    options = {"vae": source(root, name), "out": str(root / name / "samples"), **changes}
    sampling.run(sampling.Sample(latte=str(latte), num_clips=3, sampler=SAMPLER, **options))
    return Path(options["out"])


def check_cache(latents: Path, model: VideoAutoencoder, name: str) -> None:
    vae = LatentDataset(latents).manifest["vae"]
    assert vae["class"] == type(model).__name__
    assert vae["encoder_sha256"] == encoder_hash(model)
    wanted = {k: v for k, v in asdict(model.config).items() if k not in SCALING}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in vae["config"].items()} == wanted
    assert vae.get("scaling") == (
        {k.removeprefix("latent_"): list(v) for k, v in SCALING.items()}
        if name == "opensora_v12"
        else None
    )


@torch.no_grad()
def check_samples(samples: Path, latte: Path, model: VideoAutoencoder, name: str) -> None:
    """The clips are what the VAE decodes from Latte's latents, at the length that was cached."""
    metadata, generator = TrainingMetadata.load(latte), Latte.from_pretrained(latte)
    assert metadata.frames == FRAMES[name]
    z = sample(generator, metadata.process, SAMPLER, indices=range(3), labels=[0, 1, 0], seed=0)
    if name == "opensora_v12":  # trained with scaling="vae"
        assert_close(metadata.denormalize(z), model.denormalize(z))
    clips = model.decode(
        metadata.denormalize(z), size=(FRAMES[name], SIDE[name], SIDE[name])
    ).clamp(-1, 1)
    for i, clip in enumerate(clips):
        frames = read_frames(samples / f"clip-{i:06d}.mkv", range(FRAMES[name]))
        assert abs(frames.astype(int) - to_uint8(clip).astype(int)).max() <= 1


@pytest.mark.filterwarnings("ignore:. clips. the distance is biased:UserWarning")
def test_every_comparator_runs_through_the_whole_chain(root):
    for name in PAPER:
        model = load_vae(source(root, name))
        assert isinstance(model, Comparator)
        latents = cached(root, name)
        check_cache(latents, model, name)
        scaling = "vae" if name == "opensora_v12" else "cache"
        latte = trained(root, name, latents, scaling=scaling)
        samples = sampled(root, name, latte)
        check_samples(samples, latte, model, name)
        inspected = {"latents": str(latents), "vae": source(root, name), "num_clips": 1}
        inspect_cache.run(
            inspect_cache.InspectCache(
                **inspected, data=str(root / "shards"), out=str(root / name / "look")
            )
        )
        assert (root / name / "look" / "grid.png").exists()
        eval_fvd.run(
            eval_fvd.EvalFVD(
                real=str(root / "shards"),
                fake=[str(samples)],
                classifier=str(root / "tiny"),
                frames=9,
                stride_real=1,
                resamples=0,
                out=str(root / name / "fvd.json"),
                **SIZE,
            )
        )
        assert read_json(root / name / "fvd.json")["value"] > 0
    result = eval_reconstruction.run(
        eval_reconstruction.EvalReconstruction(
            vae=[f"lost=cv_vae:{root}/lost", *(f"{name}={source(root, name)}" for name in PAPER)],
            data=str(root / "shards"),
            out=str(root / "reconstruction"),
            frames=9,
            classifier=str(root / "tiny"),
            lpips="none",
            save_clips=1,
            repeats=1,
            cost_frames=9,
            cost_height=16,
            cost_width=16,
            **SIZE,
        )
    )
    assert set(result["metrics"]) == {*PAPER, "trilinear", "last_frames"}
    tables = (root / "reconstruction" / "tables.md").read_text()
    lost = [line for line in tables.splitlines() if "lost" in line]
    assert len(lost) == 3
    for line in lost:
        assert "weights not found: put diffusion_pytorch_model.safetensors of " in line
        assert ", with config.json beside" in line
        assert not re.search(r"\*[\d.]+\*", line)  # no number
    assert "od_vae ran in the windows of its authors' inference (33 frames)." in tables
    assert "wan ran in" not in tables
    for name in PAPER:
        assert result["methods"][name]["cost"]["decode"] > 0
        assert result["methods"][name]["windows"] == (None if name == "wan" else "official")
        assert result["metrics"][name]["rfvd"]["value"] > 0


def test_later_models_of_diffusers_run_through_cache_latte_and_decoding(root):
    assert {CONFIGS[name].spatial_ratio for name in LATER} == {8, 16, 32}
    assert {CONFIGS[name].temporal_ratio for name in LATER} == {4, 6, 8}
    for name in LATER:
        model = load_vae(source(root, name))
        latents = cached(root, name)
        check_cache(latents, model, name)
        latte = trained(root, name, latents)
        check_samples(sampled(root, name, latte), latte, model, name)
    several = [name for name in LATER if FRAMES[name] == 9 and SIDE[name] <= 32]
    sources = [f"{name}={source(root, name)}" for name in several]
    result = eval_reconstruction.run(
        eval_reconstruction.EvalReconstruction(
            vae=sources,
            data=str(root / "shards"),
            out=str(root / "later"),
            frames=9,
            height=32,
            width=32,
            classifier=str(root / "tiny"),
            lpips="none",
            save_clips=0,
            repeats=1,
            cost_frames=9,
            cost_height=32,
            cost_width=32,
        )
    )
    assert {"wan22", "hunyuan_video", "hunyuan_video15", "cosmos", "vidtok"} <= set(several)
    for name in several:
        assert 0 < result["metrics"][name]["psnr"] < 60
    assert result["methods"]["hunyuan_video"]["windows"] == "official"
    assert result["methods"]["wan22"]["windows"] is None


def test_latents_of_one_vae_are_not_read_by_another(root, tmp_path):
    """Group causal convolutions have the causal ones' weights, and yet other latents."""
    latents = cached(root, "od_vae", out=str(tmp_path / "latents"))
    before = load_vae(source(root, "od_vae"))
    assert isinstance(before, ODVAE)
    after = to_group_causal(before)
    assert_close(after.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert encoder_hash(after) != encoder_hash(before)
    single = load_vae(source(root, "od_vae"), windows="single")
    assert encoder_hash(single) != encoder_hash(before)
    dataset = LatentDataset(latents)
    dataset.check_encoder(encoder_hash(before))
    with pytest.raises(ValueError, match="these latents come from the encoder"):
        dataset.check_encoder(encoder_hash(after))
    (root / "replaced").mkdir()
    after.save_pretrained(root / "replaced")
    with pytest.raises(ValueError, match="temporal was 'causal', now 'group_causal'"):
        cached(root, "od_vae", out=str(latents), vae=str(root / "replaced"))


def test_the_documented_scaling_is_refused_where_there_is_none(root, tmp_path):
    latents = cached(root, "cv_vae", out=str(tmp_path / "latents"))
    with pytest.raises(ValueError, match="its VAE has no documented scaling"):
        LatentDataset(latents, scaling="vae")
    with pytest.raises(ValueError, match="scaling='both' must be 'cache' or 'vae'"):
        LatentDataset(latents, scaling="both")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cv_vae", {"frames": 6}, r"6 frames, but the VAE needs 1 \+ 4n. Use 5 or 9"),
        ("cogvideox", {"frames": 13}, r"13 frames, but the VAE needs 1 \+ 8n. Use 9 or 17"),
        ("opensora_v12", {"height": 20}, "height 20, but the VAE needs a multiple of 8"),
        ("od_vae", {"vae": "od_vea:/x"}, "no VAE named 'od_vea': use one of ivvae, cv_vae"),
        ("od_vae", {"vae": "od_vae:{root}/cv_vae"}, "holds a CVVAE, not a ODVAE"),
        (
            "od_vae",
            {"vae": "cv_vae:{root}/shards"},
            "holds none of .*; weights not found: put diffusion_pytorch_model.safetensors of "
            ".*, with config.json beside",
        ),
    ],
)
def test_what_a_comparator_cannot_take_is_refused_before_anything_is_written(
    root, tmp_path, name, changes, message
):
    changes = {k: v.format(root=root) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=message):
        cached(root, name, out=str(tmp_path / "latents"), **changes)
    assert not (tmp_path / "latents").exists()
