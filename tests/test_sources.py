"""Several weighted sources in one run: shares, order, resuming, processes; images among videos."""

import io
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.testing import assert_close

from common.cli import parse
from common.seeding import fold
from data.clips.batch_order import MixedOrder, Source, WeightedRoundRobin, source_names
from data.clips.batches import Bucket, BucketConfig
from data.importers.folders import Images
from data.latents.dataset import LatentDataset
from data.shards.external import index_external
from data.shards.index import ShardIndex
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from data.training import mix_latents
from data.video.decode import read_frames
from engine.run_folder import read_log
from latte.training_config import ImageOptions
from scripts import train_latte, train_vae
from scripts.train_vae import TrainVAE
from tests.builders.latent_caches import VAE, complete, make_cache
from tests.builders.packed import pack
from tests.builders.processes import run_ranks
from tests.builders.training_runs import latte_run, video_run, weights

SIZES, WEIGHTS = {0: [5, 4], 1: [30], 2: [3, 3, 3]}, {0: 0.5, 1: 1.5, 2: 0.5}


def test_each_source_has_its_exact_share_and_goes_through_its_samples_epoch_by_epoch():
    order = MixedOrder(SIZES, WEIGHTS, 8, seed=3)
    items = [item for step in range(250) for item in order.batch(step)]  # two cycles of 1000
    assert Counter(source for source, *_ in items) == {0: 400, 1: 1200, 2: 400}
    for number, sizes in SIZES.items():
        drawn = [item[1:] for item in items if item[0] == number]
        count = sum(sizes)
        for epoch in range(len(drawn) // count):
            part = drawn[epoch * count : (epoch + 1) * count]
            assert {e for e, _ in part} == {epoch}
            assert sorted(index for _, index in part) == list(range(count))
    mixed = [len({source for source, *_ in order.batch(step)}) for step in range(50)]
    assert np.mean(mixed) > 2  # a batch holds samples of several


def test_the_order_follows_from_seed_and_step_alone():
    used = MixedOrder(SIZES, WEIGHTS, 6, seed=1)
    for step in (900, 3, 167, 166, 3):
        fresh = MixedOrder(SIZES, WEIGHTS, 6, seed=1)
        assert used.batch(step) == fresh.batch(step)
        parts = [fresh.local_batch(step, rank, 3) for rank in range(3)]
        assert [item for part in parts for item in part] == fresh.batch(step)
    other = MixedOrder(SIZES, WEIGHTS, 6, seed=2)
    assert [other.batch(step) for step in range(9)] != [used.batch(step) for step in range(9)]
    with pytest.raises(ValueError, match=r"4 processes .* global batch of 6"):
        used.check_world_size(4)


def test_buckets_keep_the_order_that_they_had():
    """The formula of runs that were begun before there were sources."""
    turns = WeightedRoundRobin([2.0, 1.0, 1.0], 5, name="buckets", cycle=100)
    for step in (0, 57, 99, 100, 341):
        cycle, position = divmod(step, 100)
        owners = np.repeat([0, 1, 2], [50, 25, 25])
        order = np.random.default_rng(fold(5, "buckets", cycle)).permutation(owners)
        number = order[position]
        before = cycle * (owners == number).sum() + (order[:position] == number).sum()
        assert turns.visit(step) == (number, before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two packed sets of videos, and images of two classes in a folder."""
    root = tmp_path_factory.mktemp("data")
    pack(root / "one", [12, 14, 16, 18])
    pack(root / "two", [13, 15, 17])
    rng = np.random.default_rng(0)
    for name in ("sky/a.png", "sky/b.jpg", "sea/c.png", "sea/deep/d.webp"):
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 64)).save(root / "photos" / name, quality=95)
    found = Images(root=root / "photos").scan()
    config = ShardConfig(short_side=64, min_frames=1, crf=0)
    write_shards(found, root / "images", config)
    return root


def mixed(folders, folder, *, steps=4, **changes):
    config = video_run(folder, folders / "one" / "shards", steps, learning_rate=1e-4)
    changes = {"sources": (Source(folder=str(folders / "two" / "shards"), weight=2.0),), **changes}
    return replace(config, **changes)


def with_images(folders, folder, **changes):
    sizes = {"height": 16, "width": 16, "batch_size": 4}
    buckets = (Bucket(frames=1, weight=1, **sizes), Bucket(frames=5, weight=1, **sizes))
    return mixed(
        folders,
        folder,
        sources=(Source(folder=str(folders / "images"), weight=3.0),),
        buckets=BucketConfig(buckets=buckets, enlarge=True),
        **changes,
    )


def test_images_are_packed_as_videos_of_one_frame(folders):
    index = ShardIndex.load(folders / "images")
    assert index.class_names == ["deep", "sea", "sky"]
    keys = [
        (entry.key, entry.frames, index.class_names[entry.label or 0]) for entry in index.entries
    ]
    assert sorted(keys) == [
        ("sea__c", 1, "sea"),
        ("sea__deep__d", 1, "deep"),
        ("sky__a", 1, "sky"),
        ("sky__b", 1, "sky"),
    ]
    number = [key for key, *_ in keys].index("sky__a")
    stored = read_frames(index.read(number), [0])[0].astype(int)
    shown = np.asarray(Image.open(folders / "photos" / "sky" / "a.png")).astype(int)
    assert abs(stored - shown).mean() < 8  # color has half the resolution
    with pytest.raises(ValueError, match="no images in it or below it"):
        Images(root=folders / "one" / "shards").scan()


def test_image_tars_of_others_are_indexed(folders, tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number, path in enumerate(sorted((folders / "photos").rglob("*.*"))):
            parts = {path.suffix[1:]: path.read_bytes(), "cls": str(number % 2).encode()}
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"{number:04}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    index_external(tmp_path)
    index = ShardIndex.load(tmp_path)
    assert [(entry.frames, entry.label) for entry in index.entries] == [(1, 0), (1, 1)] * 2
    for number, path in enumerate(sorted((folders / "photos").rglob("*.*"))):
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        frame = read_frames(index.read(number), [0])[0].astype(int)
        assert abs(frame - pixels).mean() < 1  # JPEG decoders differ by rounding


def test_a_resumed_run_and_two_processes_see_the_same_clips(folders, tmp_path):
    train_vae.run(mixed(folders, tmp_path / "straight"))
    train_vae.run(mixed(folders, tmp_path / "resumed", steps=3))
    train_vae.run(mixed(folders, tmp_path / "resumed"))
    one = weights(tmp_path / "straight")
    assert_close(weights(tmp_path / "resumed"), one, rtol=0, atol=0)
    run_ranks(2, train_vae.run, mixed(folders, tmp_path / "two"))
    logs = [read_log(tmp_path / name) for name in ("straight", "resumed", "two")]
    names = ["source/" + name for name in source_names(mixed(folders, tmp_path).folders)]
    for lines in zip(*logs, strict=True):
        shares = [[line[name] for name in names] for line in lines]
        assert shares[0] == shares[1] == shares[2]
        assert sum(shares[0]) == 1
        assert_close(lines[2]["loss"], lines[0]["loss"], rtol=1e-5, atol=0)
    assert len({line[names[0]] for line in logs[0]}) > 1


def test_images_and_videos_train_together_each_in_the_buckets_that_it_fills(folders, tmp_path):
    config = with_images(folders, tmp_path / "run", steps=6)
    train_vae.run(config)
    log = read_log(tmp_path / "run")
    assert {line["source/images"] for line in log} > {0.0}  # clips of 5 frames are of videos
    assert all(line["source/images"] + line["source/shards"] == 1 for line in log)


def test_a_dry_run_shows_what_each_source_will_give(folders, tmp_path, capsys):
    train_vae.run(replace(mixed(folders, tmp_path / "run", steps=30), dry_run=True))
    out = capsys.readouterr().out
    assert f"source {folders}/one/shards: 33.3% of the clips, 40 to come, 10.0 epochs of 4" in out
    assert f"source {folders}/two/shards: 66.7% of the clips, 80 to come, 26.7 epochs of 3" in out


def test_with_buckets_each_source_gives_its_share_of_those_that_it_fills(folders, tmp_path):
    config = with_images(folders, tmp_path / "run")
    _, clips = config.load(Accelerator(cpu=True))
    # a half of the steps have images, and a source of weight 3 gives three of four of their clips
    assert config.clips_per_source(clips) == {"shards": (4, 2.5), "images": (4, 1.5)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sources=[{folder: two, weight: -1}]"], "weight=-1.0 must be above 0"),
        (["--sources=[{folder: two, weight: 0}]"], "weight=0.0 must be above 0"),
        (["--sources=[{folder: one}]"], "sources: one is given twice"),
        (
            ["--sources=[{folder: two}]", "--data=null", "--stream.urls=[x.tar]"],
            "not with a stream",
        ),
    ],
)
def test_sources_that_make_no_sense_are_refused(flags, message):
    base = ["--train.folder=run", "--train.steps=1", "--loss.perceptual=none"]
    base += ["--train.global_batch_size=1", "--data.folder=one"]
    with pytest.raises(ValueError, match=message):
        parse(TrainVAE, [*base, *flags])


def test_sources_that_give_no_clips_are_refused(folders, tmp_path):
    images = (Source(folder=str(folders / "images")),)
    with pytest.raises(ValueError, match=r"images: .*4 videos .*5 frames"):
        train_vae.run(mixed(folders, tmp_path / "run", sources=images))
    long = BucketConfig(buckets=(Bucket(frames=5, height=16, width=16, batch_size=2),))
    with pytest.raises(ValueError, match=r"images: no video fits a bucket: .* the 5 frames"):
        train_vae.run(mixed(folders, tmp_path / "run", sources=images, buckets=long))
    with pytest.raises(ValueError, match="nowhere"):
        train_vae.run(mixed(folders, tmp_path / "run", sources=(Source(folder="nowhere"),)))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def caches(folders, tmp_path_factory):
    """Two caches of a made-up encoder, of other clips and other sizes."""
    root = tmp_path_factory.mktemp("latents")
    for name in ("one", "two"):
        complete(make_cache(root / name, folders / name / "shards"))
    return root


def test_caches_are_normalized_by_the_statistics_of_their_mixture(caches):
    parts = [LatentDataset(caches / name) for name in ("one", "two")]
    alone = parts[0].std.clone()
    mix_latents(parts, [len(part) for part in parts], classes=True)
    assert torch.equal(parts[0].mean, parts[1].mean)
    items = [part[0, i]["latent"] for part in parts for i in range(len(part))]
    values = torch.stack(items).double()  # n c t h w
    assert_close(values.mean((0, 2, 3, 4)), torch.zeros(2).double(), rtol=0, atol=0.03)
    assert_close(values.std((0, 2, 3, 4)), torch.ones(2).double(), rtol=0, atol=0.03)
    one = [LatentDataset(caches / "one") for _ in range(2)]
    mix_latents(one, [1, 5], classes=True)
    assert_close(one[1].std, alone, rtol=1e-6, atol=0)


def test_latte_trains_on_several_caches_and_resumes(caches, tmp_path):
    sources = (Source(folder=str(caches / "two"), weight=0.5),)

    def run(folder, steps, **changes):
        config = latte_run(tmp_path / folder, caches / "one", steps)
        return train_latte.run(replace(config, sources=sources, **changes))

    run("straight", 4)
    run("resumed", 2)
    run("resumed", 4)
    one, two = weights(tmp_path / "straight"), weights(tmp_path / "resumed")
    assert_close(one, two, rtol=0, atol=0)
    log = read_log(tmp_path / "straight")
    assert all(line["source/one"] + line["source/two"] == 1 for line in log)
    assert 0 < sum(line["source/two"] for line in log) < len(log)


def test_images_follow_the_clips_of_every_cache(folders, caches, tmp_path):
    options = {"shape": (2, 1, 8, 8), "frames": 1, "stride": 1}
    complete(make_cache(tmp_path / "images", folders / "one" / "shards", **options))
    config = latte_run(tmp_path / "run", caches / "one", 2)
    config = replace(
        config,
        sources=(Source(folder=str(caches / "two")),),
        images=ImageOptions(latents=str(tmp_path / "images"), per_step=6),
    )
    train_latte.run(config)
    assert read_log(tmp_path / "run")[-1]["source/two"] in (0.25, 0.5, 0.75)


def test_a_dry_run_of_latte_shows_the_caches(caches, tmp_path, capsys):
    sources = (Source(folder=str(caches / "two"), weight=3.0),)
    config = latte_run(tmp_path / "run", caches / "one", 10)
    train_latte.run(replace(config, sources=sources, dry_run=True))
    out = capsys.readouterr().out
    assert "source one: 25.0% of the clips, 10 to come, 0.6 epochs of 16" in out
    assert "source two: 75.0% of the clips, 30 to come, 2.5 epochs of 12" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": {**VAE, "encoder_sha256": "fedcba9876543210"}}, "from the encoder fedcba987654"),
        ({"shape": (2, 2, 4, 8), "height": 16}, r"latents of shape \(2, 2, 4, 8\)"),
    ],
)
def test_caches_that_do_not_fit_each_other_are_refused(changes, message, folders, caches, tmp_path):
    complete(make_cache(tmp_path / "other", folders / "two" / "shards", **changes))
    config = latte_run(tmp_path / "run", caches / "one", 1)
    with pytest.raises(ValueError, match=message):
        train_latte.run(replace(config, sources=(Source(folder=str(tmp_path / "other")),)))
    assert not (tmp_path / "run").exists()
