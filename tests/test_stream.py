"""Streaming: endless, shared out between ranks and workers, right clips, bad samples by policy."""

import re
import shutil
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
import webdataset
from torch.testing import assert_close

from data.clips.batches import Bucket, BucketConfig
from data.clips.dataset import ClipConfig, ClipDataset
from data.clips.stream import StreamConfig, stream_batches, training_stream
from engine.config import TrainConfig
from engine.run_folder import read_log
from scripts import train_vae
from scripts.train_vae import TrainVAE
from tests.builders.packed import SHADES, pack
from tests.builders.videos import read_barcode, write_barcode_video
from vae import VAEConfig
from vae.losses import VAELossConfig

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed"), [9, 12, 10, 11, 14, 13, 9, 10], per_shard=1)


def config(folder, **options):
    sizes = {"frames": 3, "stride": 2, "height": 64, "width": 96, "shuffle": 2}
    urls = (f"{folder}/shard-{{000000..000007}}.tar",)
    return StreamConfig(**{"urls": urls, **sizes, **options})


def stream(folder, count, batch=2, options=None, **places):
    return list(islice(stream_batches(config(folder, **(options or {})), batch, **places), count))


def test_items_are_those_of_a_clip_data_set(folder):
    batch = stream(folder, 1, batch=4)[0]
    clips = ClipDataset(ClipConfig(folder=str(folder), frames=3, height=64, width=96), seed=0)
    expected = clips[0, 0]
    assert batch.keys() == {*expected.keys(), "unreadable_clips"} - {"start", "flip", "unreadable"}
    assert batch["video"].shape == (4, *expected["video"].shape)
    assert batch["video"].dtype == torch.uint8
    for video, label, key in zip(batch["video"], batch["label"], batch["key"], strict=True):
        number = int(key.removeprefix("video"))
        assert label == number % 2
        frames = video.permute(1, 2, 3, 0).numpy()
        first = read_barcode(frames[0])
        assert [read_barcode(frame) for frame in frames] == [first, first + 2, first + 4]
        if number * SHADES < 256:
            assert abs(frames[:, 40:, :, 1].mean() - number * SHADES) < SHADES / 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_round_is_shared_out_between_all_ranks_and_workers(folder, workers):
    steps = 4  # of one clip: two of each worker, or four of each process
    parts = [
        stream(
            folder, steps, batch=1, options={"shuffle": 1}, rank=rank, world_size=2, workers=workers
        )
        for rank in (0, 1)
    ]
    keys = [batch["key"][0] for part in parts for batch in part]
    assert sorted(keys) == [f"video{i}" for i in range(8)]


def test_it_never_ends_and_every_round_has_another_order(folder):
    keys = [batch["key"][0] for batch in stream(folder, 24, batch=1, options={"shuffle": 1})]
    rounds = [keys[:8], keys[8:16], keys[16:]]
    assert all(sorted(part) == sorted(rounds[0]) for part in rounds)
    assert len({tuple(part) for part in rounds}) == 3


def test_more_streams_than_shards_all_get_samples(folder):
    options = {"urls": (f"{folder}/shard-000003.tar",)}
    for rank in range(3):
        assert (
            stream(folder, 2, options=options, rank=rank, world_size=3)[1]["key"] == ["video3"] * 2
        )


def test_the_same_seed_gives_the_same_batches_another_seed_or_rank_others(folder):
    a, b = stream(folder, 3), stream(folder, 3)
    for x, y in zip(a, b, strict=True):
        assert x["key"] == y["key"]
        assert_close(x["video"], y["video"], rtol=0, atol=0)
    assert [x["key"] for x in stream(folder, 3, seed=1)] != [x["key"] for x in a]
    options = {"urls": (f"{folder}/shard-000004.tar",)}
    one, two = (stream(folder, 4, options=options, rank=r, world_size=2) for r in (0, 1))
    assert any(not torch.equal(x["video"], y["video"]) for x, y in zip(one, two, strict=True))


def test_pipes_are_read(folder):
    options = {"urls": (f"pipe:cat {folder}/shard-00000{{2..3}}.tar",)}
    keys = [key for batch in stream(folder, 2, options=options) for key in batch["key"]]
    assert set(keys) == {"video2", "video3"}


def write(path, samples):
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return str(path)


def test_bad_samples_and_shards_stop_it_or_are_counted(tmp_path, caplog):
    good = write_barcode_video(tmp_path / "good.mp4", 9).read_bytes()
    samples = [
        {"__key__": "page", "mp4": b"<html>"},
        {"__key__": "text", "txt": "no video"},
        {"__key__": "named", "mp4": good, "json": {"label": "run"}},
        {"__key__": "good", "mp4": good, "cls": 3},
    ]
    shard = write(tmp_path / "x.tar", samples)
    (tmp_path / "cut.tar").write_bytes(b"no tar" * 200)
    urls = (shard, str(tmp_path / "cut.tar"), str(tmp_path / "missing.tar"))
    with pytest.raises(ValueError, match=r"max_error_fraction=0"):
        stream(tmp_path, 3, options={"urls": urls})
    for workers in (0, 1):
        caplog.clear()
        options = {"urls": urls, "max_error_fraction": 0.01}
        batches = stream(tmp_path, 4, options=options, workers=workers)
        assert all(batch["key"] == ["good", "good"] for batch in batches)
        assert batches[0]["label"].tolist() == [3, 3]
        for reason in (
            "HTML page",
            "none of them a video",
            "'run' is a name",
            "missing.tar",
            "cut.tar",
        ):
            assert reason in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_without_clips_is_given_up(folder, tmp_path, workers):
    with pytest.raises(ValueError, match=r"^\S+: no clip from 64 .*too short"):
        stream(folder, 1, options={"frames": 30}, workers=workers)
    page = write(tmp_path / "x.tar", [{"__key__": "page", "mp4": b"<html>"}])
    with pytest.raises(ValueError, match=r"no clip from 64 .*: page: .*HTML"):
        stream(folder, 1, options={"urls": (page,), "max_error_fraction": 0.5}, workers=workers)
    options = {"urls": (str(tmp_path / "missing.tar"),), "max_error_fraction": 0.5}
    with pytest.raises(ValueError, match=r"missing.tar: .*\(No such file"):
        stream(folder, 1, options=options, workers=workers)


def training(folder, run_folder, steps=2, batch=2, **changes):
    train = TrainConfig(
        folder=str(run_folder),
        steps=steps,
        global_batch_size=batch,
        log_every=1,
        learning_rate=1e-12,
    )
    values = {
        "train": train,
        "stream": config(folder, frames=5, stride=1, height=16, width=16),
        "model": VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1),
        "loss": VAELossConfig(perceptual="none"),
    }
    return TrainVAE(**{**values, **changes})


def test_a_vae_trains_on_a_stream_and_says_when_it_begins_anew(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    for steps in (2, 4):
        assert "begins anew" not in caplog.text
        train_vae.run(training(folder, tmp_path / "stopped", steps))
    assert "step 2: streamed data cannot be resumed exactly: the stream begins anew" in caplog.text
    train_vae.run(training(folder, tmp_path / "straight", 4))
    stopped, straight = (
        [line["mae"] for line in read_log(tmp_path / name)] for name in ("stopped", "straight")
    )
    assert stopped[:2] == straight[:2]
    assert stopped[2:] != straight[2:]
    assert (tmp_path / "stopped" / "export" / "model.safetensors").exists()
    assert not (tmp_path / "stopped" / "samples").exists()


def test_a_run_goes_on_with_the_same_shards_only_wherever_they_lie(folder, tmp_path):
    """Here a byte in the middle of the last shard is another one, and its size the same."""
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    train_vae.run(training(folder, tmp_path / "run", 1))
    train_vae.run(training(moved, tmp_path / "run", 2))
    last = moved / "shard-000007.tar"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    with pytest.raises(ValueError, match=r"stream was \S+ \(.*now \S+ \(sha256"):
        train_vae.run(training(moved, tmp_path / "run", 2))


def test_a_run_logs_how_many_samples_were_bad(tmp_path):
    folder = pack(tmp_path, [9, 9], per_shard=1, broken=[1])
    urls = tuple(str(folder / f"shard-00000{number}.tar") for number in (0, 1))
    stream = config(folder, urls=urls, frames=5, height=16, width=16, max_error_fraction=0.1)
    train_vae.run(training(folder, tmp_path / "run", 2, stream=stream))
    counts = [line["unreadable_clips"] for line in read_log(tmp_path / "run")]
    assert 1 <= counts[0] <= counts[1] <= 4  # of four clips, each from the one good shard of two


def test_a_resumed_stream_does_not_begin_with_the_first_clips_again(folder, tmp_path):
    source = training_stream(
        config(folder, start="center", crop="center"),
        TrainConfig(folder=str(tmp_path), steps=9, global_batch_size=8, seed=3),
        accelerator=SimpleNamespace(process_index=1, num_processes=2),  # type: ignore[arg-type]
    )
    first, again, resumed = (
        [batch["key"] for batch in islice(source(step), 3)] for step in (0, 0, 6)
    )
    assert first == again != resumed
    assert all(len(keys) == 4 for keys in first)


def test_the_plan_of_a_run_on_a_stream_has_no_epochs(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("engine.dry_run.estimate_memory", lambda *_: None)
    train_vae.run(training(folder, tmp_path / "run", dry_run=True))
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("data: ")]
    assert line.endswith("4 to come, a stream")
    assert not (tmp_path / "run").exists()


def test_a_stream_with_settings_of_indexed_data_is_refused(folder, tmp_path):
    data = ClipConfig(folder=str(folder), frames=5, height=16, width=16)
    sizes = BucketConfig(buckets=(Bucket(frames=5, height=16, width=16, batch_size=2),))
    for changes in ({"data": data}, {"stream": None}):
        with pytest.raises(ValueError, match="set exactly one of data and stream"):
            training(folder, tmp_path, **changes)
    with pytest.raises(ValueError, match="buckets require data"):
        training(folder, tmp_path, buckets=sizes)
    wrong = config(folder, frames=6, stride=1, height=16, width=16)
    with pytest.raises(ValueError, match="6 frames, but the VAE needs"):
        training(folder, tmp_path, stream=wrong)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_refused_at_once(folder):
    for change in ({"batch_size": 0}, {"workers": -1}, {"rank": 2, "world_size": 2}):
        with pytest.raises(ValueError, match=r"batch_size=\d+ .*, workers="):
            stream_batches(config(folder), **{"batch_size": 1, **change})
    with pytest.raises(ValueError, match="urls is empty"):
        config(folder, urls=())
    for url in ("a-{0..1000000}.tar", "a-{000..999}-{0..9999}.tar", "a-{0..1.tar"):
        with pytest.raises(ValueError, match=re.escape(url)):
            config(folder, urls=(url,))
    with pytest.raises(ValueError, match="shuffle=0"):
        config(folder, shuffle=0)
