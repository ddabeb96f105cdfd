"""Buckets: one size per global batch, by (seed, step) alone, in proportion to the weights."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data.clips.batch_order import BatchOrder
from data.clips.batches import (
    Bucket,
    BucketClips,
    BucketConfig,
    BucketOrder,
    batches,
    training_batches,
)
from data.clips.dataset import ClipConfig
from tests.builders.packed import pack
from tests.builders.videos import read_barcode

IMAGES = Bucket(frames=1, height=32, width=48, weight=2, batch_size=4)
CLIPS = Bucket(frames=5, height=64, width=96, batch_size=2)
LONG = Bucket(frames=9, height=32, width=32, batch_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed"), [3, 20, 6, 14, 5, 11])


def clips(folder, *buckets, **options):
    config = ClipConfig(folder=str(folder), max_error_fraction=options.pop("bad", 0.0))
    return BucketClips(config, BucketConfig(buckets=buckets, **options), seed=1)


def load(dataset, start, stop, rank=0, world_size=1, workers=0):
    return list(
        batches(dataset, dataset.batch_order(seed=2), start, stop, rank, world_size, workers)
    )


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert x["key"] == y["key"]
        assert_close(x["video"], y["video"], rtol=0, atol=0)


def test_each_batch_is_of_one_bucket_and_videos_go_where_they_fit(folder):
    dataset = clips(folder, IMAGES, CLIPS, LONG)
    sizes = {(4, 3, 1, 32, 48): 3, (2, 3, 5, 64, 96): 5, (2, 3, 9, 32, 32): 9}
    lengths = [3, 20, 6, 14, 5, 11]
    seen = Counter()
    for batch in load(dataset, 0, 24):
        shape = tuple(batch["video"].shape)
        seen[shape] += 1
        for key, label in zip(batch["key"], batch["label"], strict=True):
            number = int(key.removeprefix("video"))
            assert lengths[number] >= sizes[shape]
            assert label == number % 2
    assert seen.keys() == sizes.keys()


def test_batches_do_not_depend_on_workers_earlier_steps_or_ranks(folder):
    straight = load(clips(folder, IMAGES, CLIPS, LONG), 0, 12)
    assert_same(load(clips(folder, IMAGES, CLIPS, LONG), 0, 12, workers=2), straight)
    assert_same(load(clips(folder, IMAGES, CLIPS, LONG), 7, 12), straight[7:])
    parts = [load(clips(folder, IMAGES, CLIPS, LONG), 0, 12, rank, 2) for rank in (0, 1)]
    for a, b, whole in zip(*parts, straight, strict=True):
        assert len(a["key"]) == len(b["key"])
        assert a["key"] + b["key"] == whole["key"]
        assert_close(torch.cat([a["video"], b["video"]]), whole["video"], rtol=0, atol=0)


def mixed_order(weights, seed=0, samples=50):
    return BucketOrder([BatchOrder([samples], 4, i) for i in range(len(weights))], weights, seed)


def test_a_cycle_holds_each_bucket_by_its_weight():
    mixed = mixed_order([6, 3, 1])
    for cycle in (0, 5):
        buckets = [mixed.turns.visit(100 * cycle + step)[0] for step in range(100)]
        assert Counter(buckets) == {0: 60, 1: 30, 2: 10}
    assert [mixed.turns.visit(i)[0] for i in range(100)] != [
        mixed.turns.visit(100 + i)[0] for i in range(100)
    ]
    assert [mixed.turns.visit(i)[0] for i in range(50)] != [
        mixed_order([6, 3, 1], 1).turns.visit(i)[0] for i in range(50)
    ]
    assert np.bincount(mixed_order([1, 1, 1]).turns.cycle).tolist() == [34, 33, 33]
    assert np.bincount(mixed_order([1e6, 1, 1]).turns.cycle).tolist() == [98, 1, 1]
    assert np.bincount(mixed_order([1] * 150).turns.cycle).tolist() == [1] * 150


def test_each_bucket_goes_through_its_samples_epoch_by_epoch():
    mixed, alone = mixed_order([2, 1]), [BatchOrder([50], 4, i) for i in range(2)]
    visits = Counter()
    for step in range(250):
        bucket, *_ = {item[0] for item in mixed.batch(step)}
        expected = alone[bucket].batch(visits[bucket])
        assert [item[1:] for item in mixed.batch(step)] == expected
        assert mixed_order([2, 1]).batch(step) == mixed.batch(step)
        visits[bucket] += 1


def test_the_smaller_videos_go_to_the_smaller_buckets(folder):
    large = Bucket(frames=1, height=128, width=64, batch_size=2)
    with pytest.raises(ValueError, match=r"bucket 1x128x64: .* 128 .* 64"):
        clips(folder, IMAGES, large)
    item = clips(folder, IMAGES, large, enlarge=True)[1, 0, 0]
    assert item["video"].shape == (3, 1, 128, 64)


def test_a_bucket_without_enough_videos_is_refused_when_it_is_built(folder):
    with pytest.raises(ValueError, match=r"bucket 21x32x32: .*6 videos .*21 frames"):
        clips(folder, IMAGES, Bucket(frames=21, height=32, width=32, batch_size=2))
    with pytest.raises(ValueError, match=r"bucket 9x32x32: .*3 items"):
        clips(folder, Bucket(frames=9, height=32, width=32, batch_size=4)).batch_order(0)


def test_batches_follow_from_a_budget_of_pixels():
    config = BucketConfig(buckets=(IMAGES, Bucket(frames=17, height=64, width=64)), pixels=500_000)
    assert [config.batch_size(bucket) for bucket in config.buckets] == [4, 4]  # 7.2 clips would fit
    with pytest.raises(ValueError, match=r"bucket 17x64x64: .* pixels=1000"):
        BucketConfig(buckets=(Bucket(frames=17, height=64, width=64),), pixels=1000)
    with pytest.raises(ValueError, match=r"bucket 17x64x64: .*batch_size, or pixels"):
        BucketConfig(buckets=(Bucket(frames=17, height=64, width=64),))


def test_every_bucket_must_be_divided_by_the_processes(folder):
    dataset = clips(folder, IMAGES, CLIPS)
    with pytest.raises(ValueError, match=r"4 processes .* global batch of 2"):
        batches(dataset, dataset.batch_order(0), 0, 1, world_size=4)


def test_the_trainers_batches_take_buckets(folder):
    dataset = clips(folder, IMAGES, CLIPS)
    config = SimpleNamespace(steps=5, seed=2, workers=0, global_batch_size=1000)
    process = SimpleNamespace(process_index=1, num_processes=2)
    found = list(training_batches(dataset, config, process)(2))
    assert_same(found, load(dataset, 2, 5, 1, 2))


def test_unreadable_videos_are_counted_once_for_all_buckets(tmp_path):
    folder = pack(tmp_path, [12] * 6, broken=[2])
    dataset = clips(folder, IMAGES, CLIPS, bad=0.2)
    for batch in load(dataset, 0, 10, workers=1):
        assert "video2" not in batch["key"]
    assert list(dataset.unreadable.reasons) == ["video2"]


def test_clips_have_the_right_frames(folder):
    item = clips(folder, CLIPS)[0, 3, 1]
    frames = item["video"].permute(1, 2, 3, 0).numpy()
    assert [read_barcode(frame) for frame in frames] == [item["start"] + i for i in range(5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"weight": 0.0}, "weight=0.0 must be above 0"),
    ],
)
def test_bad_buckets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Bucket(**{"frames": 1, "height": 8, "width": 8, **options})


def test_no_and_equal_buckets_are_refused():
    with pytest.raises(ValueError, match="buckets is empty"):
        BucketConfig(buckets=())
    with pytest.raises(ValueError, match="each size may occur once"):
        BucketConfig(buckets=(IMAGES, IMAGES))
