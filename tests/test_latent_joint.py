"""Clips with images behind them: right latents, independent choices, one normalization."""

import pytest
import torch
from torch.testing import assert_close

from data.clips.batch_order import BatchOrder
from data.clips.batches import batches
from data.latents.dataset import JointLatents, LatentDataset
from tests.builders.latent_caches import VAE, complete, make_cache
from tests.builders.packed import pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed"), [20, 14, 30, 25], class_names="abc")


def cached(folder, packed, frames=5, **options):
    shape = (2, (frames + 3) // 4, 8, 8)
    complete(make_cache(folder, packed, shape=shape, frames=frames, **options))
    return folder


@pytest.fixture
def caches(tmp_path, packed):
    videos = cached(tmp_path / "videos", packed)
    images = cached(tmp_path / "images", packed, frames=1, clips_per_video=3)
    return videos, images


def test_images_follow_the_clip_in_its_normalization(caches):
    videos, images = (LatentDataset(folder, "mean") for folder in caches)
    assert images.latent_shape == (2, 1, 8, 8)
    joint = JointLatents(videos, images, 3)
    stored = [images.raw(i) for i in range(len(images))]
    mean, std = (values[:, None, None, None] for values in (videos.mean, videos.std))
    for index in (0, 9):
        item = joint[2, index]
        assert item["latent"].shape == (2, 2 + 3, 8, 8)
        assert_close(item["latent"][:, :2], videos[2, index]["latent"], rtol=0, atol=0)
        assert (item["label"], item["key"]) == (
            videos.raw(index)["label"],
            videos.raw(index)["key"],
        )
        for number in range(3):
            wanted = item["latent"][:, 2 + number : 3 + number] * std + mean
            same = [
                r for r in stored if torch.allclose(r["moments"][:2].float(), wanted, atol=1e-4)
            ]
            assert same
            assert item["image_labels"][number] == same[0]["label"]


def test_the_choice_follows_from_seed_epoch_and_clip(caches):
    def labels(epoch, index, seed=0):
        sets = [LatentDataset(folder, "mean", seed=seed) for folder in caches]
        return JointLatents(*sets, 40)[epoch, index]["latent"][:, 2:].sum((0, 2, 3)).tolist()

    assert labels(0, 1) == labels(0, 1)
    assert labels(0, 1) != labels(1, 1)
    assert labels(0, 1) != labels(0, 2)
    assert labels(0, 1) != labels(0, 1, seed=1)
    assert len(set(labels(0, 1))) > 12  # of 24: drawn independently


def test_posteriors_are_sampled_and_batches_load(caches):
    joint = JointLatents(LatentDataset(caches[0]), LatentDataset(caches[1]), 2)
    assert not torch.equal(joint[0, 0]["latent"][:, :2], joint[1, 0]["latent"][:, :2])
    order = BatchOrder(joint.shard_sizes, 4, seed=0)
    for workers in (0, 1):
        batch = next(iter(batches(joint, order, 3, 4, workers=workers)))
        assert batch["latent"].shape == (4, 2, 4, 8, 8)
        assert batch["image_labels"].shape == (4, 2)


def test_caches_that_do_not_fit_are_refused(caches, tmp_path, packed):
    videos, images = (LatentDataset(folder) for folder in caches)
    with pytest.raises(ValueError, match=r"\(2, 2, 8, 8\), but .*\(2, 1, 8, 8\)"):
        JointLatents(videos, videos, 1)
    with pytest.raises(ValueError, match="count=0"):
        JointLatents(videos, images, 0)
    other = {**VAE, "encoder_sha256": "fedcba9876543210"}
    folder = cached(tmp_path / "vae", packed, frames=1, vae=other)
    with pytest.raises(ValueError, match="come from the encoder fedcba987654"):
        JointLatents(videos, LatentDataset(folder), 1)
    images.class_names = ["x"]
    with pytest.raises(ValueError, match="its classes are not those of"):
        JointLatents(videos, images, 1)
