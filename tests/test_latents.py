"""The latent cache: statistics, resuming to the same bytes, refusals, posterior sampling."""

import errno
import json
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from data.clips.batch_order import BatchOrder
from data.clips.batches import batches
from data.clips.options import Cut
from data.latents import writer
from data.latents.dataset import LatentDataset
from data.latents.shards import CacheConfig
from data.latents.writer import EncodedBatch
from data.verify import verify
from tests.builders.latent_caches import SHAPE, VAE, complete, damage, edit, encode, make_cache
from tests.builders.packed import pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed"), [20, 14, 30, 6, 25], class_names="abc")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def cached(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    assert complete(make_cache(folder, packed)) == [0, 1, 2, 3, 4, 5]
    return folder


@pytest.fixture
def copy(cached, tmp_path):
    return shutil.copytree(cached, tmp_path / "copy")


def test_every_clip_is_stored_as_encoded(cached, packed):
    dataset = LatentDataset(cached)
    clips = make_cache(cached, packed).clips
    assert len(dataset) == 4 * 2 * 2  # one of five videos is too short
    assert dataset.shard_sizes == [3, 3, 3, 3, 3, 1]
    assert dataset.latent_shape == SHAPE
    assert dataset.class_names == ["a", "b", "c"]
    assert dataset.encoder_hash == VAE["encoder_sha256"]
    keys = set()
    for index in range(len(dataset)):
        item = dataset.raw(index)
        keys.add(item["key"])
        assert item["flip"] == bool(index % 2)
        assert item["label"] == int(item["key"].split(":")[0].removeprefix("video")) % 3
        video = clips.clip(index // 4, Cut(item["start"], flip=item["flip"]))
        assert_close(item["moments"], encode(video[None])[0].half(), rtol=0, atol=0)
    assert len(keys) == len(dataset)
    assert "video2:1:flip" in keys


def test_clips_of_a_video_lie_in_parts_of_their_own(tmp_path, packed):
    items = make_cache(tmp_path, packed, clips_per_video=3, flip=False).items
    starts = [items.item(n).start for n in range(len(items))]
    for index, frames in enumerate([20, 14, 30, 25]):
        possible = frames - 8  # starts of 5 frames at stride 2
        for clip, start in enumerate(starts[3 * index : 3 * index + 3]):
            assert int(clip * possible / 3) <= start < (clip + 1) * possible / 3
    other = make_cache(tmp_path, packed, clips_per_video=3, flip=False, seed=1).items
    assert starts != [other.item(n).start for n in range(len(other))]


def test_statistics_are_those_of_sampled_latents(cached):
    dataset = LatentDataset(cached)
    moments = np.stack([dataset.raw(i)["moments"].double().numpy() for i in range(len(dataset))])
    mean, logvar = moments[:, :2], moments[:, 2:]
    axes = (0, 2, 3, 4)
    std = np.sqrt(mean.var(axes) + np.exp(logvar).mean(axes))
    assert_close(dataset.mean, torch.tensor(mean.mean(axes)).float())
    assert_close(dataset.std, torch.tensor(std).float())
    assert dataset.manifest["statistics"]["mean"] == pytest.approx(mean.mean(axes), rel=1e-12)
    assert dataset.manifest["statistics"]["std"] == pytest.approx(std, rel=1e-12)


def test_sampled_latents_are_normalized(cached):
    dataset = LatentDataset(cached)
    drawn = torch.stack([dataset[e, i]["latent"] for e in range(20) for i in range(len(dataset))])
    assert drawn.dtype == torch.float32
    assert_close(drawn.mean((0, 2, 3, 4)), torch.zeros(2), rtol=0, atol=0.02)
    assert_close(drawn.std((0, 2, 3, 4)), torch.ones(2), rtol=0, atol=0.02)


def test_the_mean_policy_is_exact(cached):
    dataset = LatentDataset(cached, posterior="mean")
    for index in (0, 7, 15):
        latent = dataset[3, index]["latent"]
        stored = dataset.raw(index)["moments"][:2].float()
        mean, std = (values[:, None, None, None] for values in (dataset.mean, dataset.std))
        assert_close(latent, (stored - mean) / std, rtol=0, atol=0)


def test_posterior_noise_follows_from_seed_epoch_and_key(cached):
    a, b, other = LatentDataset(cached), LatentDataset(cached), LatentDataset(cached, seed=1)
    b[0, 3]
    assert_close(a[1, 5]["latent"], b[1, 5]["latent"], rtol=0, atol=0)
    z = torch.stack([a[0, 5]["latent"], a[1, 5]["latent"], other[0, 5]["latent"]])
    mean = LatentDataset(cached, posterior="mean")[0, 5]["latent"]
    std = (0.5 * a.raw(5)["moments"][2:].float()).exp() / a.std[:, None, None, None]
    noise = ((z - mean) / std).flatten(1)
    assert_close(noise.std(1), torch.ones(3), rtol=0, atol=0.2)
    assert (torch.corrcoef(noise) - torch.eye(3)).abs().max() < 0.25


def test_log_variances_are_clamped_like_the_vae_does(tmp_path, packed):
    def extreme(video):
        moments = encode(video)
        moments[:, 2:] = 40.0
        return moments

    complete(make_cache(tmp_path, packed), extreme)
    dataset = LatentDataset(tmp_path)
    assert_close(dataset.std, torch.full((2,), float(np.exp(10))), rtol=1e-4, atol=0)
    assert_close(dataset[0, 0]["latent"].std(), torch.tensor(1.0), rtol=0, atol=0.2)


def test_the_result_depends_neither_on_the_processes_nor_on_the_workers(cached, packed, tmp_path):
    complete(make_cache(tmp_path, packed), ranks=2, workers=1)
    assert contents(tmp_path) == contents(cached)


def test_a_second_run_has_nothing_to_do(copy, packed):
    cache = make_cache(copy, packed)
    assert cache.complete
    assert cache.pending() == []


def test_a_deleted_and_a_damaged_shard_are_made_again(cached, copy, packed):
    (copy / "latents-000001.safetensors").unlink()
    (copy / "latents-000002.json").unlink()
    damage(copy / "latents-000004.safetensors")
    assert complete(make_cache(copy, packed)) == [1, 2, 4]
    assert contents(copy) == contents(cached)


def test_a_killed_run_goes_on_to_the_same_bytes(cached, packed, tmp_path):
    calls = 0

    def dies(video):
        nonlocal calls
        calls += 1
        if calls == 6:  # in the third shard
            raise KeyboardInterrupt
        return encode(video)

    cache = make_cache(tmp_path, packed)
    cache.begin(6)
    with pytest.raises(KeyboardInterrupt):
        cache.write(dies, cache.pending(), batch_size=2)
    with pytest.raises(ValueError, match=r"no manifest\.json .*cache_latents\.py"):
        LatentDataset(tmp_path)
    with pytest.raises(ValueError, match=r"shards \[2, 3, 4, 5\] are missing"):
        cache.finish()
    assert complete(make_cache(tmp_path, packed)) == [2, 3, 4, 5]
    assert contents(tmp_path) == contents(cached)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vae": {**VAE, "encoder_sha256": "fedc"}},
            "vae.encoder_sha256 was '0123456789abcdef', now 'fedc'",
        ),
        ({"stride": 1}, "source.stride was 2, now 1"),
        ({"clips_per_video": 1}, "cache.clips_per_video was 2, now 1"),
    ],
)
def test_another_cache_in_the_folder_is_refused_with_the_difference(copy, packed, change, message):
    with pytest.raises(ValueError, match=message):
        make_cache(copy, packed, **change)


def test_another_source_is_refused(copy, tmp_path):
    other = pack(tmp_path / "other", [20, 14, 30, 6, 26], class_names="abc")
    with pytest.raises(ValueError, match=r"source.hash was '\w+\.\.\.\w+', now"):
        make_cache(copy, other)


def test_a_cache_without_its_manifest_or_identity(copy, packed):
    (copy / "manifest.json").unlink()
    assert make_cache(copy, packed).pending() == []
    with pytest.raises(ValueError, match=r"cache\.seed was 0, now 1"):
        make_cache(copy, packed, seed=1)
    (copy / "identity.json").unlink()
    with pytest.raises(ValueError, match=r"holds latents-\S+ without identity\.json"):
        make_cache(copy, packed)


def test_verify_finds_a_damaged_shard(copy):
    assert not verify(copy).problems
    damage(copy / "latents-000003.safetensors")
    problem = verify(copy).problems[0]
    assert problem.file == str(copy / "latents-000003.safetensors")
    assert "sha256" in problem.reason


def test_missing_and_truncated_shards_are_refused_at_once(copy):
    path = copy / "latents-000003.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=rf"{len(data) - 10} bytes .* {len(data)}"):
        LatentDataset(copy)
    path.unlink()
    with pytest.raises(ValueError, match=r"latents-000003.safetensors: 0 bytes"):
        LatentDataset(copy)
    path.write_bytes(bytes(len(data)))
    with pytest.raises(ValueError, match=r"latents-000003.safetensors: "):
        LatentDataset(copy).raw(9)


def test_folders_that_are_no_cache_are_refused(copy, tmp_path):
    with pytest.raises(ValueError, match=r"no manifest\.json there"):
        LatentDataset(tmp_path)
    edit(copy, schema=7)
    with pytest.raises(ValueError, match="schema 7, but this version reads 2"):
        LatentDataset(copy)


def test_labels_out_of_range_are_refused(copy):
    edit(copy, class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"label 2, but there are 2 class names"):
        [LatentDataset(copy).raw(i) for i in range(16)]


def test_another_vae_is_refused(cached):
    dataset = LatentDataset(cached)
    dataset.check_encoder(VAE["encoder_sha256"])
    with pytest.raises(ValueError, match="encoder 0123456789ab, not from fedc"):
        dataset.check_encoder("fedc")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 6.1e4])
def test_moments_that_float16_cannot_hold_are_refused(tmp_path, packed, value):
    def broken(video):
        moments = encode(video)
        moments[-1, 3, 1, 0, 0] = value
        return moments

    with pytest.raises(ValueError, match="video0:0:flip is not finite"):
        complete(make_cache(tmp_path, packed), broken)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_batch_is_read_back_when_the_next_one_is_under_way(tmp_path, packed, monkeypatch):
    seen, read = [], EncodedBatch.moments

    def encode_noted(video):
        seen.append("encode")
        return encode(video)

    def read_noted(batch):
        if threading.current_thread() is threading.main_thread():
            seen.append("read")
        return read(batch)

    monkeypatch.setattr(EncodedBatch, "moments", read_noted)
    complete(make_cache(tmp_path, packed), encode_noted)
    between = ["encode", "read"] * (len(seen) // 2 - 1)  # over ends of shards, too
    assert seen == ["encode", *between, "read"]
    assert len(seen) > 10


def test_a_shard_that_cannot_be_written_ends_the_work_soon(tmp_path, packed, monkeypatch):
    written, calls = [], []

    class Noted(ThreadPoolExecutor):
        def submit(self, *arguments):
            written.append(super().submit(*arguments))
            return written[-1]

    def no_room(path, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def encode_noted(video):
        calls.append(1)
        if len(calls) == 5:  # the first shard has been handed over since the last call
            assert written[0].exception(timeout=30)
        return encode(video)

    monkeypatch.setattr(writer, "ThreadPoolExecutor", Noted)
    monkeypatch.setattr(writer, "write_shard", no_room)
    with pytest.raises(OSError, match=r"No space left.*latents-000000\.safetensors"):
        complete(make_cache(tmp_path, packed, items_per_shard=6), encode_noted)
    assert len(calls) == 5
    assert not [each for each in threading.enumerate() if each.name.startswith("prefetch")]


def test_moments_of_another_shape_are_refused(tmp_path, packed):
    with pytest.raises(ValueError, match=r"\(2, 4, 1, 8, 8\) .*\(2, 4, 2, 8, 8\)"):
        complete(make_cache(tmp_path, packed), lambda video: encode(video)[:, :, :1])


def test_unreadable_videos_stop_the_cache_or_are_listed(tmp_path):
    packed = pack(tmp_path / "packed", [13] * 4, broken=[1])
    with pytest.raises(ValueError, match=r"video1: .*1 unreadable of 4"):
        complete(make_cache(tmp_path / "a", packed))
    complete(make_cache(tmp_path / "b", packed, max_error_fraction=0.25))
    dataset = LatentDataset(tmp_path / "b")
    assert dataset.shard_sizes == [3, 1, 1, 3, 3, 1]
    assert {dataset.raw(i)["key"].split(":")[0] for i in range(12)} == {
        "video0",
        "video2",
        "video3",
    }
    assert dataset.manifest["totals"]["failures"] == 4
    assert {f["video"] for f in dataset.manifest["failures"]} == {"video1"}
    (tmp_path / "b" / "latents-000005.json").unlink()
    # Also when those shards are there already
    with pytest.raises(ValueError, match="1 unreadable of 4"):
        complete(make_cache(tmp_path / "b", packed))


def test_a_full_disk_is_noticed_before_encoding(tmp_path, packed, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"6 shards need .* Free space"):
        make_cache(tmp_path, packed).begin(6)


def test_plain_safetensors_can_read_a_shard(cached):
    with safe_open(cached / "latents-000000.safetensors", "np") as file:
        assert file.get_slice("moments").get_shape() == [3, 4, 2, 8, 8]
        assert file.get_slice("moments").get_dtype() == "F16"
        assert set(file.keys()) == {"moments", "label", "clip_start", "flip"}
        assert json.loads(file.metadata()["keys"])[1] == "video0:0:flip"


def test_latents_load_through_workers_and_pickle(cached):
    dataset = LatentDataset(cached)
    dataset.raw(0)
    dataset = pickle.loads(pickle.dumps(dataset))
    order = BatchOrder(dataset.shard_sizes, 4, seed=0)
    straight = list(batches(dataset, order, 0, 8))
    parallel = list(batches(dataset, order, 0, 8, workers=2))
    assert straight[0]["latent"].shape == (4, *SHAPE)
    for a, b in zip(straight, parallel, strict=True):
        assert a["key"] == b["key"]
        assert_close(a["latent"], b["latent"], rtol=0, atol=0)


def test_items_out_of_range_and_unknown_policies_are_refused(cached):
    with pytest.raises(IndexError, match="item 16 of 16"):
        LatentDataset(cached).raw(16)
    with pytest.raises(ValueError, match="posterior='mode' must be"):
        LatentDataset(cached, posterior="mode")
    with pytest.raises(ValueError, match="clips_per_video=0"):
        CacheConfig(clips_per_video=0)
