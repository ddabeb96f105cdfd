"""The sampling script: processes, labels, continuation, copies for people."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from common.files import read_json
from data.clips.dataset import PackedClips
from data.latents.dataset import LatentDataset
from data.video.decode import read_frames
from data.video.encode import from_uint8
from engine.config import TrainConfig
from eval.clips.labels import seed_folders
from eval.published.named_protocols import clips_to_generate
from latte.config import LatteOptions
from latte.samplers import SamplerConfig
from scripts import cache_latents, sample, train_latte
from scripts.sample import Sample
from scripts.train_latte import TrainLatte
from tests.builders.packed import pack
from vae import VAEConfig, VideoVAE

FEW = {"method": "ddim", "steps": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A VAE, its latents, and a class-conditional Latte that has learned nothing to speak of."""
    root = tmp_path_factory.mktemp("made")
    shards = pack(root, [12, 14, 16, 18])
    torch.manual_seed(0)
    VideoVAE(
        VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
    ).save_pretrained(root / "vae")
    for size in (16, 24):
        cache_latents.run(
            cache_latents.CacheLatents(
                vae=str(root / "vae"),
                data=PackedClips(folder=str(shards), frames=9, height=size, width=size),
                out=str(root / f"latents{size}"),
                workers=0,
            )
        )
    for conditional in (True, False):
        train = TrainConfig(
            folder=str(root / f"run_{conditional}"),
            steps=2,
            global_batch_size=2,
            learning_rate=0.01,
        )
        model = LatteOptions(
            size="custom", hidden_size=16, depth=2, num_heads=2, class_conditional=conditional
        )
        train_latte.run(TrainLatte(train=train, latents=str(root / "latents16"), model=model))
    return root


def config(made, out, conditional=True, **values):
    return Sample(
        latte=str(made / f"run_{conditional}" / "export"),
        vae=str(made / "vae"),
        out=str(out),
        **{"num_clips": 3, "sampler": SamplerConfig(**FEW), **values},
    )


def frames(folder, index):
    return read_frames(folder / f"clip-{index:06d}.mkv", range(9))


def test_random_labels_are_those_of_the_clips_numbers(made, tmp_path, monkeypatch):
    # What the clips show is not looked at
    monkeypatch.setattr(sample, "sample_clips", lambda *_, **__: ())

    def labels(out, **values):
        sample.run(config(made, tmp_path / out, random_labels=True, **values))
        return [clip["label"] for clip in read_json(tmp_path / out / "samples.json")["clips"]]

    many = labels("many", num_clips=12)
    assert 2 < sum(many) < 10
    assert labels("few", num_clips=4) == many[:4]
    assert labels("other", num_clips=12, seed=1) != many
    assert set(labels("one", labels=(1,))) == {1}


def test_copies_for_people(made, tmp_path):
    folders = {"mp4": str(tmp_path / "mp4"), "gif": str(tmp_path / "gif")}
    sample.run(config(made, tmp_path / "out", num_clips=1, **folders))
    lossless = frames(tmp_path / "out", 0)
    with Image.open(tmp_path / "gif" / "clip-000000.gif") as gif:
        assert gif.n_frames == 9
        first = np.asarray(gif.convert("RGB")).astype(float)
    assert abs(first - lossless[0]).mean() < 16  # 256 colors
    assert (tmp_path / "mp4" / "clip-000000.mp4").stat().st_size > 0


def test_copies_asked_for_later_are_those_asked_for_at_once(made, tmp_path):
    at_once = {kind: tmp_path / f"{kind}_at_once" for kind in ("mp4", "gif")}
    later = {kind: tmp_path / f"{kind}_later" for kind in ("mp4", "gif")}
    sample.run(config(made, tmp_path / "a", **{k: str(v) for k, v in at_once.items()}))
    sample.run(config(made, tmp_path / "b", num_clips=2))
    sample.run(config(made, tmp_path / "b", **{k: str(v) for k, v in later.items()}))
    for kind in ("mp4", "gif"):
        for i in range(3):
            name = f"clip-{i:06d}.{kind}"
            assert (later[kind] / name).read_bytes() == (at_once[kind] / name).read_bytes()


def test_clips_of_other_weights_are_not_kept_nor_mixed(made, tmp_path):
    """The same path may hold weights that were trained on since."""
    run = shutil.copytree(made / "run_True", tmp_path / "run")
    out, copies = tmp_path / "out", {"mp4": str(tmp_path / "mp4")}

    def draw(folder=out, **values):
        sample.run(replace(config(made, folder, num_clips=2), latte=str(run / "export"), **values))

    draw(**copies)
    before = (out / "clip-000000.mkv").read_bytes()
    weights = run / "export" / "model.safetensors"
    state = load_file(weights)
    save_file({name: value * 1.5 for name, value in state.items()}, weights)
    reason = rf"latte was {run}/export \(sha256 \w{{12}}\), now {run}/export \(sha256 \w{{12}}\)"
    for count in (2, 3):
        with pytest.raises(ValueError, match=reason):
            draw(num_clips=count)
    assert (out / "clip-000000.mkv").read_bytes() == before
    assert not (out / "clip-000002.mkv").exists()
    with pytest.raises(ValueError, match=f"{tmp_path}/mp4: .*{reason}"):  # nor copies of both
        draw(tmp_path / "new", **copies)
    save_file(state, weights)
    run.rename(tmp_path / "moved")  # where weights lie does not matter
    run = tmp_path / "moved"
    draw(num_clips=3)
    assert (out / "clip-000002.mkv").exists()


def test_clips_go_on_from_given_first_frames(made, tmp_path):
    """A clip's first frame is what the VAE decodes from the given latent, whatever the seed."""
    latents = LatentDataset(made / "latents16", "mean")
    vae = VideoVAE.from_pretrained(made / "vae")
    given = {"first_frames": str(made / "latents16")}
    for seed in (0, 1):
        sample.run(config(made, tmp_path / str(seed), seed=seed, **given))
    for i in range(3):
        expected = vae.decode(latents.draw(0, i)[0][None, :, :1])[0].detach()
        for seed in (0, 1):
            first = from_uint8(frames(tmp_path / str(seed), i)[:1])
            assert_close(first, expected.clamp(-1, 1), rtol=0, atol=1.1 / 127.5)
    assert (frames(tmp_path / "0", 0)[1:] != frames(tmp_path / "1", 0)[1:]).any()
    clips = read_json(tmp_path / "0" / "samples.json")["clips"]
    assert [clip["continues"] for clip in clips] == [latents.raw(i)["key"] for i in range(3)]


@pytest.mark.parametrize(
    ("conditional", "values", "message"),
    [
        (True, {"labels": (0, 2)}, r"labels=\(0, 2\).* knows the classes 0 to 1"),
        (False, {"labels": (0,)}, "is unconditional; it takes no labels"),
        (False, {"random_labels": True}, "is unconditional; it takes no labels"),
        (False, {"sampler": SamplerConfig(guidance=7.0)}, "needs a class-conditional model"),
        (True, {"sampler": SamplerConfig(steps=1001)}, "steps=1001 must be from 2 to 1000"),
        (True, {"sampler": SamplerConfig(method="heun")}, "this model is a diffusion"),
        (True, {"weights": "raw"}, r"export: has no raw weights\. Give a checkpoint"),
        (True, {"first_frames": "latents24"}, r"\(4, 3, 3\), but .* makes \(4, 2, 2\)"),
        (True, {"first_frames": "latents16", "known_frames": 3}, "at least one must be left"),
        (True, {"first_frames": "latents16", "num_clips": 9}, "num_clips=9: .* has 4 latents"),
    ],
)
def test_requests_that_do_not_fit_leave_nothing(made, tmp_path, conditional, values, message):
    if "first_frames" in values:
        values = {**values, "first_frames": str(made / values["first_frames"])}
    with pytest.raises(ValueError, match=message):
        sample.run(config(made, tmp_path / "out", conditional, **values))
    assert not (tmp_path / "out").exists()


def test_bad_numbers(made, tmp_path):
    with pytest.raises(ValueError, match=r"known_frames=2 .*first_frames"):
        config(made, tmp_path, known_frames=2)
    with pytest.raises(ValueError, match="known_frames=0 must be at least 1"):
        config(made, tmp_path, known_frames=0)
    with pytest.raises(ValueError, match=r"weights=raw .*untrained=true"):
        config(made, tmp_path, weights="raw", untrained=True)


def test_each_sampling_seed_has_a_folder_that_eval_fvd_takes_as_one_set(made, tmp_path):
    both = config(made, tmp_path / "sets", num_clips=2, seeds=(3, 10), mp4=str(tmp_path / "mp4"))
    sample.run(both)
    assert seed_folders(str(tmp_path / "sets")) == [f"{tmp_path}/sets/seed-{s}" for s in (3, 10)]
    assert seed_folders(str(tmp_path / "sets" / "seed-3")) == [f"{tmp_path}/sets/seed-3"]
    assert len(list(tmp_path.glob("mp4/seed-*/*.mp4"))) == 4
    sample.run(config(made, tmp_path / "alone", num_clips=2, seed=10))
    for i in range(2):
        assert (frames(tmp_path / "sets/seed-10", i) == frames(tmp_path / "alone", i)).all()
        assert (frames(tmp_path / "sets/seed-10", i) != frames(tmp_path / "sets/seed-3", i)).any()
    sample.run(replace(both, seeds=(3, 10, 4), mp4=None))  # one more
    assert len(seed_folders(str(tmp_path / "sets"))) == 3
    with pytest.raises(ValueError, match=r"seeds=\(1, 1\)"):
        replace(both, seeds=(1, 1))
    with pytest.raises(ValueError, match=r"seed=2 .*seeds=\(3, 10\)"):
        replace(both, seed=2)


@pytest.mark.parametrize(
    ("protocol", "given", "clip", "message"),
    [
        ("stylegan_v", 100, (16, 256, 256), "num_clips=100, but protocol=stylegan_v measures 2048"),
        ("stylegan_v", None, (15, 256, 256), "clips of 15 frames, but .* measures 16"),
        ("tats", None, (16, 64, 128), "clips of 64x128 pixels, but protocol=tats .* 128x128"),
        ("ivvae_table2", None, (17, 256, 256), "protocol=ivvae_table2 does not specify it"),
        ("fvd", None, (17, 256, 256), "protocol=fvd: no such protocol"),
        (None, None, (17, 256, 256), "num_clips is required without a protocol"),
    ],
)
def test_clips_that_do_not_suit_a_protocol(protocol, given, clip, message):
    with pytest.raises(ValueError, match=message):
        clips_to_generate(protocol, given, *clip)


def test_a_protocol_tells_how_many_clips(made, tmp_path):
    assert clips_to_generate("larp_128", None, 17, 256, 256) == 10_000
    assert clips_to_generate("tats", 3000, 16, 128, 128) == 3000
    with pytest.raises(ValueError, match=r"9 frames, but protocol=stylegan_v .* 16"):
        sample.run(config(made, tmp_path / "out", num_clips=None, protocol="stylegan_v"))
    assert not (tmp_path / "out").exists()
