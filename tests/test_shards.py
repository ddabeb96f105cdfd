"""Packing: webdataset reads it, a stopped run ends in the same bytes, nothing vanishes silently."""

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

import data.shards.write
from data.importers import ImportResult
from data.importers.folders import Folder
from data.shards.index import ShardIndex
from data.shards.pack_video import Packed, ShardConfig, pack_record
from data.shards.report import Failure, ShortVideo
from data.shards.write import write_shards
from data.verify import verify
from data.video.decode import iterate_frames, read_frames
from data.video.probe import probe
from data.video.transforms import resize
from data.video.video_record import VideoRecord
from tests.builders.videos import barcode_frame, read_barcode, write_barcode_video

CONFIG = ShardConfig(short_side=48, videos_per_shard=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two classes, five videos, three containers."""
    root = tmp_path_factory.mktemp("videos")
    write_barcode_video(root / "run" / "a.b.mp4", 20)
    write_barcode_video(root / "run" / "c.avi", 25, encoder="mpeg4")
    write_barcode_video(root / "walk" / "d.mp4", 18, height=96, width=64)
    write_barcode_video(root / "walk" / "e.webm", 17, encoder="libvpx", options={"cpu-used": "8"})
    write_barcode_video(root / "walk" / "deep" / "run" / "f.mp4", 30, fps=30)
    (root / "walk" / "notes.txt").write_text("not a video")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "g.mp4").write_bytes(b"")
    return root


def pack(videos: Path, out: Path, config: ShardConfig = CONFIG, **options):
    found = Folder(root=videos).scan()
    return write_shards(found, out, config, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_split_is_disjoint_complete_and_stable(tmp_path):
    def records(split: str) -> list[VideoRecord]:
        return Folder(root=tmp_path, labels="none", split=split, holdout=0.2).scan().records

    for number in range(1000):
        (tmp_path / f"v{number}.mp4").touch()
    both, train, test = map(records, ("all", "train", "test"))
    assert {r.id for r in train} | {r.id for r in test} == {r.id for r in both}
    assert not {r.id for r in train} & {r.id for r in test}
    assert 150 < len(test) < 250
    for record in both[1::2]:
        record.path.unlink()
    assert records("test") == [r for r in test if r in both[::2]]
    with pytest.raises(ValueError, match="holdout=1 must be below 1"):
        Folder(root=tmp_path, holdout=1)


def test_samples_hold_the_videos_with_their_facts(videos, tmp_path):
    report = pack(videos, tmp_path)
    index = ShardIndex.load(tmp_path)
    assert (report.found, report.written) == (5, 5)
    assert (report.too_short, report.failures) == ((), ())
    assert report.classes == {"run": 3, "walk": 2}
    assert report.hours == pytest.approx((20 + 25 + 18 + 17 + 30 * 25 / 30) / 25 / 3600)
    assert index.shard_sizes == [2, 2, 1]
    assert index.class_names == ["run", "walk"]
    assert index.hash == report.hash
    assert not verify(tmp_path, decode="none").problems
    for number, sample in enumerate(index.entries):
        video = index.read(number)
        info = probe(video)
        assert (info.frames, info.height, info.width, info.fps) == (
            sample.frames,
            sample.height,
            sample.width,
            sample.fps,
        )
        assert min(info.height, info.width) == 48
        frames = read_frames(video, range(info.frames))
        assert [read_barcode(frame) for frame in frames] == list(range(info.frames))


def test_an_index_can_be_pickled(videos, tmp_path):
    pack(videos, tmp_path)
    index = ShardIndex.load(tmp_path)
    first = index.read(0)
    copy = pickle.loads(pickle.dumps(index))
    assert copy.read(0) == index.read(0) == first


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves shards to the collector
def test_webdataset_reads_the_same_samples(videos, tmp_path):
    pack(videos, tmp_path)
    index = ShardIndex.load(tmp_path)
    shards = [str(tmp_path / shard.name) for shard in index.shards]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [sample.key for sample in index.entries]
    for number, (sample, ours) in enumerate(zip(samples, index.entries, strict=True)):
        assert sample["mp4"] == index.read(number)
        facts = json.loads(sample["json"])
        assert facts["label"] == ours.label
        assert facts["class_name"] == index.class_names[ours.label]
        for name in ("frames", "fps", "height", "width"):
            assert facts[name] == getattr(ours, name)


def test_originals_are_stored_as_they_are(videos, tmp_path):
    pack(videos, tmp_path, ShardConfig(reencode=False))
    index = ShardIndex.load(tmp_path)
    avi = next(n for n, sample in enumerate(index.entries) if sample.key == "run__c")
    assert index.read(avi) == (videos / "run" / "c.avi").read_bytes()
    assert set(index.entries[avi].members) == {"avi", "json"}
    part = VideoRecord("part", videos / "run" / "c.avi", None, 0, 20)
    with pytest.raises(ValueError, match="part is a part of the file"):
        write_shards(ImportResult([part]), tmp_path / "x", ShardConfig(reencode=False))


def test_a_record_of_some_frames_holds_only_these(videos, tmp_path):
    part = VideoRecord("part", videos / "run" / "c.avi", None, 5, 23)
    write_shards(ImportResult([part]), tmp_path, CONFIG)
    index = ShardIndex.load(tmp_path)
    assert index.entries[0].label is None
    frames = read_frames(index.read(0), range(18))
    assert [read_barcode(frame) for frame in frames] == list(range(5, 23))


def test_long_videos_are_cut_to_the_most_frames(videos, tmp_path):
    pack(videos, tmp_path, ShardConfig(short_side=48, max_frames=18))
    index = ShardIndex.load(tmp_path)
    assert [sample.frames for sample in index.entries] == [18, 18, 18, 18, 17]
    assert [probe(index.read(number)).frames for number in range(5)] == [18, 18, 18, 18, 17]


def test_the_report_tells_sizes_and_quality(videos, tmp_path):
    report = pack(videos, tmp_path / "a")
    paths = [record.path for record in Folder(root=videos).scan().records]
    assert report.source_bytes == sum(path.stat().st_size for path in paths)
    assert report.psnr is not None
    assert 30 < report.psnr_lowest < report.psnr < 60
    worse = pack(videos, tmp_path / "b", ShardConfig(short_side=48, crf=40))
    assert worse.psnr < report.psnr - 5
    assert worse.bytes < report.bytes
    assert pack(videos, tmp_path / "c", ShardConfig(reencode=False)).psnr is None


def test_psnr_is_the_one_of_the_packed_frames(videos, tmp_path):
    record = VideoRecord("v", videos / "walk" / "deep" / "run" / "f.mp4", None)
    packed = pack_record(record, config=CONFIG)
    assert isinstance(packed, Packed)
    whole = np.stack([resize(frame.image, 48) for frame in iterate_frames(record.path)])
    chosen = list(range(0, 30, 2))  # 16 at most: every second of 30
    error = whole[chosen].astype(float) - read_frames(packed.video, chosen)
    assert packed.psnr == pytest.approx(10 * np.log10(255**2 / np.mean(error**2)), abs=1e-9)


def test_a_picture_that_changes_its_size_is_bad(tmp_path):
    parts = [
        write_barcode_video(tmp_path / f"{width}.ts", 20, 64, width).read_bytes()
        for width in (96, 128)
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    failed = pack_record(VideoRecord("v", tmp_path / "both.ts", None), config=CONFIG)
    assert isinstance(failed, Failure)
    assert "both.ts: frame 20 has 48x96 pixels, those before it 48x72" in failed.reason


def test_shards_stay_below_their_size(videos, tmp_path, monkeypatch):
    sizes = [600_000, 300_000, 300_000, 1_200_000, 5_000]
    videos_of_sizes = iter([Packed(bytes(size), "mp4", 25, 64, 96, 25.0) for size in sizes])
    monkeypatch.setattr(data.shards.write, "pack_record", lambda *_, **__: next(videos_of_sizes))
    records = [VideoRecord(f"v{n}", videos / "run" / "c.avi", None) for n in range(5)]
    write_shards(ImportResult(records), tmp_path, ShardConfig(shard_mb=1))
    index = ShardIndex.load(tmp_path)
    assert index.shard_sizes == [2, 1, 1, 1]
    assert [shard.name for shard in index.shards] == [
        "shard-000000.tar",
        "shard-000000-1.tar",
        "shard-000000-2.tar",
        "shard-000000-3.tar",
    ]
    assert [len(index.read(number)) for number in range(5)] == sizes


@pytest.mark.parametrize("lost", ["shard-000001.tar", "shard-000001.json", "index.json"])
def test_a_stopped_run_continues_to_the_same_bytes(videos, tmp_path, lost):
    pack(videos, tmp_path)
    straight = contents(tmp_path)
    kept = tmp_path / "shard-000000.tar"
    written = kept.stat().st_mtime_ns
    (tmp_path / lost).unlink()
    (tmp_path / ".shard-000001.99.tmp.tar").write_bytes(b"left by a killed run")
    pack(videos, tmp_path)
    assert contents(tmp_path) == straight
    assert kept.stat().st_mtime_ns == written


def test_a_damaged_shard_is_noticed_and_made_again(videos, tmp_path):
    pack(videos, tmp_path)
    straight = contents(tmp_path)
    shard = tmp_path / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    problems = verify(tmp_path, decode="none").problems
    assert (problems[0].file, "sha256" in problems[0].reason) == (str(shard), True)
    pack(videos, tmp_path)
    assert contents(tmp_path) == straight


def test_workers_give_the_same_bytes(videos, tmp_path):
    pack(videos, tmp_path / "here")
    pack(videos, tmp_path / "pool", workers=2)
    assert contents(tmp_path / "here") == contents(tmp_path / "pool")


@pytest.fixture
def flawed(videos, tmp_path) -> Path:
    """A good, an empty and a short video."""
    root = tmp_path / "flawed"
    write_barcode_video(root / "x" / "good.mp4", 20)
    write_barcode_video(root / "x" / "short.mp4", 9)
    (root / "x" / "empty.mp4").write_bytes(b"")
    return root


def test_bad_and_short_videos_are_counted_and_named(flawed, tmp_path):
    report = pack(flawed, tmp_path / "out", on_error="skip")
    assert (report.found, report.written, len(report.failures)) == (3, 1, 1)
    short = ShortVideo("x__short", str(flawed / "x" / "short.mp4"), 9)
    assert report.too_short == (short,)
    assert report.failures[0].id == "x__empty"
    assert "empty.mp4: the file is empty" in report.failures[0].reason
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (stored["written"], stored["failures"]) == (1, [asdict(report.failures[0])])
    assert pack(flawed, tmp_path / "out", on_error="skip") == report


def test_a_bad_video_stops_the_run_by_default(flawed, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"empty\.mp4: .*empty.*on_error=skip"):
        pack(flawed, out)
    assert not (out / "index.json").exists()
    with pytest.raises(ValueError, match=r"no index\.json there.*make_shards"):
        ShardIndex.load(out)
    pack(flawed, out, on_error="skip")
    with pytest.raises(ValueError, match="the file is empty"):
        pack(flawed, out)


def test_nothing_to_write_is_an_error(flawed, tmp_path):
    with pytest.raises(ValueError, match="none of 3 videos could be packed"):
        pack(flawed, tmp_path / "out", ShardConfig(min_frames=999), on_error="skip")


def test_a_folder_of_other_shards_is_refused_with_the_difference(videos, tmp_path):
    pack(videos, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"crf was 12, now 20"):
        pack(videos, tmp_path / "out", ShardConfig(short_side=48, videos_per_shard=2, crf=20))
    found = Folder(root=videos).scan()
    with pytest.raises(ValueError, match=r"videos was 5 videos \(.* now 4 videos"):
        write_shards(replace(found, records=found.records[1:]), tmp_path / "out", CONFIG)
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "identity.json").unlink()
    with pytest.raises(ValueError, match="made by something else"):
        pack(videos, tmp_path / "out")


def test_records_that_contradict_each_other(videos, tmp_path):
    path = videos / "run" / "c.avi"
    one = VideoRecord("one", path, None)
    with pytest.raises(ValueError, match=r"1 ids .* 'one': .*c\.avi and .*c\.avi"):
        write_shards(ImportResult([one, one]), tmp_path, CONFIG)
    with pytest.raises(ValueError, match="label 3, but there are 1 class names"):
        write_shards(ImportResult([VideoRecord("two", path, 3)], ["a"]), tmp_path, CONFIG)
    with pytest.raises(ValueError, match="no videos"):
        write_shards(ImportResult([]), tmp_path, CONFIG)
    with pytest.raises(ValueError, match="without dots or slashes"):
        VideoRecord("a.b", path, None)
    with pytest.raises(ValueError, match=r"frames \[5, 5\) are empty"):
        VideoRecord("a", path, None, 5, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 33}, "short_side=33 must be a multiple of 2"),
        ({"crf": 99}, "crf=99 must be at most 51"),
        ({"min_frames": 0}, "min_frames=0 must be at least 1"),
        ({"max_frames": 16}, "max_frames=16 is less than min_frames=17"),
        ({"max_frames": 30, "reencode": False}, "which reencode=false stores whole"),
    ],
)
def test_config_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ShardConfig(**options)


def test_index_that_does_not_fit_its_files_is_refused(videos, tmp_path):
    pack(videos, tmp_path)
    index = ShardIndex.load(tmp_path)
    shard = tmp_path / "shard-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:2000])
    with pytest.raises(ValueError, match=r"shard-000000\.tar: .*2000 bytes, not \d+"):
        ShardIndex.load(tmp_path)
    with pytest.raises(ValueError, match=r"of run__a_b\.mp4; the shard is cut short"):
        index.read(0)
    shard.unlink()
    with pytest.raises(ValueError, match="the shard is missing"):
        ShardIndex.load(tmp_path)
    entries = json.loads((tmp_path / "index.json").read_text())
    for change, message in (
        ({"schema": 9}, "schema 9, but this version"),
        ({"entries": {"key": ["a"]}}, "damaged"),
        ({"shards": entries["shards"][1:]}, "its shards do not hold 5 entries"),
    ):
        (tmp_path / "index.json").write_text(json.dumps({**entries, **change}))
        with pytest.raises(ValueError, match=message):
            ShardIndex.load(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        ShardIndex.load(tmp_path)


def test_resize_keeps_the_aspect_evenly_and_never_enlarges():
    assert resize(barcode_frame(0, 240, 320), 96).shape == (96, 128, 3)
    assert resize(barcode_frame(0, 333, 111), 96).shape == (288, 96, 3)
    small = barcode_frame(5, 63, 95)
    assert (resize(small, 96) == small[:62, :94]).all()
    stripes = barcode_frame(0, 256, 256)
    stripes[:] = np.where(np.arange(256) % 4 == 0, 255, 0)[:, None]
    assert abs(int(resize(stripes, 64)[10, 10, 0]) - 64) <= 2  # averaged, not picked
