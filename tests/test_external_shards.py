"""Shards of other tools: webdataset's rules, read by offset, never changed, watched for changes."""

import io
import os
import tarfile

import pytest
import webdataset as wds

import data.shards.external
from common.cli import parse
from data.clips.dataset import ClipConfig, ClipDataset
from data.shards.external import index_external
from data.shards.index import ShardIndex
from data.shards.tars import find_label, tar_samples, video_extension
from data.verify import verify
from data.video.decode import read_frames
from scripts.index_shards import IndexShards, run
from tests.builders.packed import pack
from tests.builders.videos import damage_packet, read_barcode, write_barcode_video

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open shards


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [
        write_barcode_video(folder / f"{i}.mp4", frames, shade=40 * i).read_bytes()
        for i, frames in enumerate([12, 9, 15])
    ]


def write(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


@pytest.fixture
def theirs(tmp_path, videos):
    """Two tars as webdataset writes them, with the same keys in both."""
    a = [
        {"__key__": "000", "mp4": videos[0], "cls": 1, "txt": "a caption"},
        {"__key__": "001", "mp4": videos[1], "cls": 0},
    ]
    write(tmp_path / "set" / "a.tar", a)
    write(tmp_path / "set" / "more" / "b.tar", [{"__key__": "000", "mp4": videos[2], "cls": 1}])
    return tmp_path / "set"


def content(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*.tar")}


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_of_webdatasets_writer_load_like_our_own(theirs, videos, workers):
    before = content(theirs)
    report = index_external(theirs, workers=workers)
    assert (report.shards, report.found, report.written, report.unlabeled) == (2, 3, 3, 0)
    assert content(theirs) == before
    index = ShardIndex.load(theirs)
    assert [index.read(i) for i in range(3)] == videos
    assert [(s.key, s.label, s.frames) for s in index.entries] == [
        ("a/000", 1, 12),
        ("a/001", 0, 9),
        ("more/b/000", 1, 15),
    ]
    assert index.shard_sizes == [2, 1]
    assert index.class_names == ["0", "1"]
    assert index.hash == report.hash
    assert not verify(theirs, decode="none").problems
    dataset = ClipDataset(ClipConfig(folder=str(theirs), frames=3, height=64, width=96), seed=0)
    item = dataset[0, 2]
    frame = item["video"][:, 0].permute(1, 2, 0).numpy()
    assert read_barcode(frame) == item["start"]


def test_our_own_shards_without_their_index_can_be_indexed_like_others(tmp_path):
    folder = pack(tmp_path, [7, 9, 8])
    ours = ShardIndex.load(folder)
    for file in folder.glob("*.json"):
        file.unlink()
    index_external(folder)
    again = ShardIndex.load(folder)
    assert list(again.entries) == list(ours.entries)
    assert again.class_names == ours.class_names


def test_the_index_may_lie_elsewhere(theirs, tmp_path, videos):
    out = tmp_path / "index"
    index_external(theirs, out)
    assert not (theirs / "index.json").exists()
    index = ShardIndex.load(out)
    assert index.read(2) == videos[2]
    assert ShardIndex.load(out).location == str(theirs.resolve())


def test_a_stopped_run_goes_on_and_a_later_one_looks_at_changes_only(theirs, videos, monkeypatch):
    scanned = []
    scan = data.shards.external._scan

    def watched(tar, *how):
        if tar.name == "b.tar" and not scanned.count("b.tar"):
            scanned.append(tar.name)
            raise KeyboardInterrupt
        scanned.append(tar.name)
        return scan(tar, *how)

    monkeypatch.setattr(data.shards.external, "_scan", watched)
    with pytest.raises(KeyboardInterrupt):
        index_external(theirs)
    assert not (theirs / "index.json").exists()
    first = index_external(theirs)
    assert scanned == ["a.tar", "b.tar", "b.tar"]
    os.utime(theirs / "a.tar", ns=(1, 1))  # copied: another time, the same content
    with pytest.raises(ValueError, match=r"a.tar: was changed or copied"):
        ShardIndex.load(theirs)
    assert index_external(theirs).hash == first.hash
    assert scanned == ["a.tar", "b.tar", "b.tar"]
    write(theirs / "a.tar", [{"__key__": "000", "mp4": videos[1], "cls": 0}])
    with pytest.raises(ValueError, match=r"a.tar: the shard has \d+ bytes, not \d+"):
        ShardIndex.load(theirs)
    assert index_external(theirs).hash != first.hash
    assert scanned == ["a.tar", "b.tar", "b.tar", "a.tar"]
    assert ShardIndex.load(theirs).read(0) == videos[1]


def test_a_change_that_keeps_size_and_time_is_found_by_verify(theirs):
    index_external(theirs)
    stat = (theirs / "a.tar").stat()
    with open(theirs / "a.tar", "r+b") as file:
        file.seek(2000)
        file.write(b"!!!!")
    os.utime(theirs / "a.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (problem,) = verify(theirs, decode="none").problems
    assert problem.file.endswith("a.tar")
    assert "sha256" in problem.reason


def test_bad_videos_and_samples_without_one(tmp_path, videos):
    samples = [
        {"__key__": "good", "mp4": videos[0]},
        {"__key__": "page", "mp4": b"<html>no"},
        {"__key__": "text", "txt": "nothing"},
        {"__key__": "odd", "mp4": videos[1], "json": b'{"label": 1.5}'},
    ]
    write(tmp_path / "x.tar", samples)
    with pytest.raises(ValueError, match=r"x.tar: page: .*HTML page.*on_error=skip"):
        index_external(tmp_path)
    report = index_external(tmp_path, on_error="skip")
    assert (report.found, report.written, report.unlabeled) == (4, 1, 1)
    assert report.without_video == ("text",)
    assert [failure.id for failure in report.failures] == ["page", "odd"]
    assert "1.5 is neither a number nor a name" in report.failures[1].reason
    assert [(s.key, s.label) for s in ShardIndex.load(tmp_path).entries] == [("good", None)]


def test_labels_that_are_names_are_numbered(tmp_path, videos):
    samples = [
        {"__key__": "a", "mp4": videos[0], "json": {"label": "run"}},
        {"__key__": "b", "mp4": videos[1], "json": {"label": "jump"}},
    ]
    write(tmp_path / "x.tar", samples)
    index_external(tmp_path)
    index = ShardIndex.load(tmp_path)
    assert index.class_names == ["jump", "run"]
    assert [sample.label for sample in index.entries] == [1, 0]


def test_labels_that_contradict_each_other_are_refused(tmp_path, videos):
    def two(a, b):
        samples = [{"__key__": k, "mp4": videos[1], "json": j} for k, j in (("a", a), ("b", b))]
        write(tmp_path / "x.tar", samples)
        index_external(tmp_path)

    with pytest.raises(ValueError, match="some labels are numbers, others names"):
        two({"label": 1}, {"label": "run"})
    with pytest.raises(ValueError, match=r"label 1 is 'run' .* 'jump' in b"):
        two({"label": 1, "class_name": "run"}, {"label": 1, "class_name": "jump"})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/b.c/000.mp4", ("a/b.c/000", "mp4")),
        ("v.left.mp4", ("v", "left.mp4")),
        ("README", None),
        (".hidden", None),
    ],
)
def test_members_are_split_as_webdataset_does(tmp_path, name, parts):
    tar = raw_tar(tmp_path / "x.tar", [(name, b"x")])
    found = [(key, *members) for key, members, _ in tar_samples(tar)]
    assert found == ([parts] if parts else [])
    assert wds.tariterators.base_plus_ext(name) == (parts or (None, None))


def test_video_members_and_labels():
    assert video_extension(["json", "left.MP4", "avi"]) == "left.MP4"
    assert video_extension(["json", "jpg", "avi"]) == "avi"
    assert video_extension(["json", "left.JPG"]) == "left.JPG"
    assert video_extension(["json", "txt"]) is None
    assert find_label({"cls": b"7\n"}) == (7, None)
    assert find_label({"cls": b"-1"}) == (None, None)
    assert find_label({"json": b'{"label": null}'}) == (None, None)
    assert find_label({"json": b'{"cls": "3", "class_name": "run"}'}) == (3, "run")
    assert find_label({"json": b"[1]"}) == (None, None)


def test_what_is_no_tar_is_refused(tmp_path, theirs, videos):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"no .tar files"):
        index_external(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no such folder"):
        index_external(tmp_path / "nowhere")
    with open(theirs / "a.tar", "r+b") as file:
        file.truncate(3000)
    with pytest.raises(ValueError, match=r"a.tar: is no readable tar \("):
        index_external(theirs)
    (theirs / "a.tar").write_bytes(b"<html>" * 200)
    with pytest.raises(ValueError, match=r"a.tar: is no readable tar"):
        index_external(theirs)
    with tarfile.open(theirs / "c.tar.gz", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"c.tar.gz: is compressed.*streaming"):
        index_external(theirs)


def test_the_command_reports(theirs, capsys):
    run(parse(IndexShards, ["--shards", str(theirs), "--workers", "0"]))
    assert (
        "3 of 3 samples in 2 tars indexed; 0 without a video, 0 failed" in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="workers=-1"):
        IndexShards(shards="x", workers=-1)


def raw_tar(path, members):
    """A tar of members with any names, in order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def read_by_webdataset(tar):
    return [
        {name: data for name, data in sample.items() if not name.startswith("__")}
        | {"key": sample["__key__"]}
        for sample in wds.WebDataset(str(tar), shardshuffle=False)
    ]


def test_odd_names_are_read_as_webdataset_reads_them(tmp_path, videos):
    tar = raw_tar(
        tmp_path / "x.tar",
        [
            ("upper.MP4", videos[0]),
            ("upper.CLS", b"1"),
            ("upper.Json", b'{"class_name": "run"}'),
            ("__under.mp4", videos[1]),
            ("__under.cls", b"0"),
            ("__under__x.mp4", videos[2]),
            ("__meta__", b"no sample"),
            ("__folder__/x.mp4", b"no sample"),
            ("./__deep/y.mp4", videos[1]),
        ],
    )
    index_external(tmp_path)
    index, theirs = ShardIndex.load(tmp_path), read_by_webdataset(tar)
    assert [sample.key for sample in index.entries] == [sample["key"] for sample in theirs]
    assert len(index) == 4
    assert [index.read(i) for i in range(4)] == [sample["mp4"] for sample in theirs]
    labels = [int(sample["cls"]) if "cls" in sample else None for sample in theirs]
    assert [sample.label for sample in index.entries] == labels == [1, 0, None, None]
    assert index.class_names[1] == "run"


def test_a_member_that_occurs_twice_is_a_failure_as_it_is_for_webdataset(tmp_path, videos):
    members = [("a.mp4", videos[0]), ("a.MP4", videos[1]), ("b.mp4", videos[1])]
    tar = raw_tar(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match="duplicate file name"):
        read_by_webdataset(tar)
    with pytest.raises(ValueError, match=r"x.tar: a: member mp4 occurs twice"):
        index_external(tmp_path)
    report = index_external(tmp_path, on_error="skip")
    assert (report.found, report.written, len(report.failures)) == (2, 1, 1)


def test_a_tar_cut_between_members_is_noticed(tmp_path, videos, capsys):
    tar = raw_tar(tmp_path / "x.tar", [(f"{i}.mp4", video) for i, video in enumerate(videos)])
    with tarfile.open(tar) as archive:
        third = archive.getmembers()[2].offset
    whole = tar.read_bytes()
    for size in (third, third + 100):  # exactly between members, and in a header
        tar.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"x.tar: (no end-of-archive|is no readable tar)"):
            index_external(tmp_path)
    tar.write_bytes(whole[:third])
    report = index_external(tmp_path, on_error="skip")
    assert (report.cut, report.written) == (("x.tar",), 2)
    run(parse(IndexShards, ["--shards", str(tmp_path), "--on_error", "skip", "--workers", "0"]))
    assert "no end: x.tar" in capsys.readouterr().out
    tar.write_bytes(whole)
    assert index_external(tmp_path).cut == ()


def test_what_indexing_takes_loading_reads(tmp_path, videos, capsys):
    options = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
    path = write_barcode_video(tmp_path / "a.webm", 40, encoder="libvpx-vp9", options=options)
    damaged = damage_packet(path, 20).read_bytes()
    write(tmp_path / "set" / "x.tar", [{"__key__": "damaged", "webm": damaged}])
    write(tmp_path / "set" / "y.tar", [{"__key__": "whole", "mp4": videos[0]}])
    with pytest.raises(ValueError, match=r"x.tar: damaged: .*cannot be decoded"):
        index_external(tmp_path / "set")
    report = index_external(tmp_path / "set", on_error="skip")
    assert ([f.id for f in report.failures], report.written) == (["damaged"], 1)
    quick = index_external(tmp_path / "set", decode="first")
    assert (quick.written, quick.unchecked) == (2, 2)
    index_external(tmp_path / "set", strict=False)
    index = ShardIndex.load(tmp_path / "set")
    for i, sample in enumerate(index.entries):
        numbers = range(sample.frames)
        read = read_frames(index.read(i), numbers, strict=False, frames=sample.frames)
        assert len(read) == sample.frames
