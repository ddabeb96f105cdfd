"""Folders of odd videos, packed by the command: names, links, suffixes, rates, failures."""

import json
import os
import tarfile
from fractions import Fraction

import av
import numpy as np
import pytest
import webdataset

from data.clips.dataset import ClipConfig, ClipDataset
from data.clips.options import Cut
from data.importers.folders import Folder
from data.shards.index import ShardIndex
from data.verify import verify
from data.video.decode import iterate_frames, read_frames
from data.video.probe import probe
from data.video.video_record import VideoRecord, open_record
from tests.builders.commands import run_script
from tests.builders.videos import (
    barcode_frame,
    damage_packet,
    drop_sync_table,
    read_barcode,
    set_display_matrix,
    turn_clockwise,
    write_audio,
    write_barcode_video,
    write_packed_avi,
)


def pack(root, out, *options):
    usual = ("folder", "--root", root, "--out", out, "--labels", "none", "--workers", 0)
    return run_script("make_shards.py", *usual, "--min_frames", 1, *options)


def facts(index, number):
    return json.loads(index.read_member(number, "json"))


def test_names_that_are_not_utf8_are_packed_under_escaped_keys(tmp_path, capsys):
    root = tmp_path / "videos"
    path = write_barcode_video(root / "a.mp4", 3)
    os.rename(path, os.fsencode(root) + b"/caf\xe9.mp4")
    (root / os.fsdecode(b"bad\xff.mp4")).write_bytes(b"no video")
    assert pack(root, tmp_path / "out", "--on_error", "skip") == 0
    assert r"bad\xff.mp4: cannot be decoded" in capsys.readouterr().out
    index = ShardIndex.load(tmp_path / "out")
    assert index.entries[0].key == "caf%E9"
    assert facts(index, 0)["source"] == r"caf\xe9.mp4"
    with tarfile.open(index.path(0)) as tar:
        assert tar.getnames() == ["caf%E9.mp4", "caf%E9.json"]


def test_a_folder_has_the_name_of_the_link_to_it(tmp_path):
    write_barcode_video(tmp_path / "videos" / "0_store" / "x17" / "a.mp4", 3)
    (tmp_path / "videos" / "cats").symlink_to("0_store/x17")
    (tmp_path / "videos" / "0_store" / "circle").symlink_to("..")
    found = Folder(root=tmp_path / "videos").scan()
    assert found.class_names == ["cats"]
    assert [record.id for record in found.records] == ["cats__a"]


def test_more_suffixes_are_taken_and_others_counted(tmp_path):
    root = tmp_path / "videos"
    for name in ("a.mts", "b.M2TS", "c.asf", "d.ogv", "e.vob", "f.mjpeg", "g.ps", "h.3g2"):
        root.mkdir(exist_ok=True)
        (root / name).touch()
    write_barcode_video(root / "i.3gp", 3, encoder="h263", height=96, width=128)
    for name in ("a.txt", "b.txt", "c.srt", "README"):
        (root / name).touch()
    found = Folder(root=root, labels="none").scan()
    assert len(found.records) == 9
    assert found.notes == ["files passed over, by extension: 1 .srt, 1 without, 2 .txt"]


def test_whatever_one_file_makes_fail_is_its_failure(tmp_path, capsys):
    root = tmp_path / "videos"
    write_barcode_video(root / "fine.mkv", 3)
    write_barcode_video(root / "line.mkv", 3, height=1, encoder="ffv1", pixels="bgr0")
    write_barcode_video(root / "wide.mkv", 2, height=2, width=16_400, encoder="ffv1", pixels="bgr0")
    slow = write_barcode_video(root / "slow.mkv", 3, pts=[0, 2_500_000, 5_000_000])
    assert pack(root, tmp_path / "out") == 2
    assert "line.mkv: cannot be packed (frames of 1x96 pixels" in capsys.readouterr().err
    assert pack(root, tmp_path / "out", "--on_error", "skip") == 0
    index = ShardIndex.load(tmp_path / "out")
    assert [index.entries[n].key for n in range(len(index))] == ["fine", "slow"]
    assert index.entries[1].fps == pytest.approx(1 / 2500, rel=0.01)
    assert probe(index.read(1)).fps == pytest.approx(1 / 2500, rel=0.01)
    assert probe(slow).frames == 3
    reasons = [
        each["reason"]
        for each in json.loads((tmp_path / "out/report.json").read_text())["failures"]
    ]
    assert "line.mkv: cannot be packed (frames of 1x96 pixels; each side" in reasons[0]
    assert "wide.mkv: cannot be packed" in reasons[1]
    assert "H.264 takes at most 16384 a side" in reasons[1]


def test_a_variable_rate_is_reported_with_its_times_or_resampled(tmp_path, capsys):
    root = tmp_path / "videos"
    uneven = [20 * n if n < 20 else 400 + 200 * (n - 20) for n in range(40)]
    write_barcode_video(root / "a.mp4", pts=uneven)
    write_barcode_video(root / "b.mp4", 20, fps=30)
    assert pack(root, tmp_path / "mean") == 0
    said = capsys.readouterr().out
    assert "a.mp4: the header says" in said
    assert "variable frame rate: frames last 0.02 to 0.2 s, 9.286 per second on average" in said
    assert "2 frame rates in one set: 9.286 (1 videos), 30 (1 videos)" in said
    index = ShardIndex.load(tmp_path / "mean")
    assert index.entries[0].frames == 40
    np.testing.assert_allclose(facts(index, 0)["times"], np.array(uneven) / 1000)
    assert "times" not in facts(index, 1)

    assert pack(root, tmp_path / "ten", "--fps", 10) == 0
    index = ShardIndex.load(tmp_path / "ten")
    assert {index.entries[n].fps for n in (0, 1)} == {10}
    shown = [read_barcode(frame.image) for frame in iterate_frames(index.read(0))]
    shown_then = [sum(time <= 100 * k for time in uneven) - 1 for k in range(len(shown))]
    assert shown == shown_then
    assert len(shown) == 43
    shown = [read_barcode(frame.image) for frame in iterate_frames(index.read(1))]
    assert shown == [0, 3, 6, 9, 12, 15, 18]


def test_a_rate_equal_to_a_videos_own_takes_every_frame(tmp_path):
    path = write_barcode_video(tmp_path / "a.mkv", fps=30)
    frames = open_record(VideoRecord("a", path, None), fps=30).frames
    assert [read_barcode(frame.image) for frame in frames] == list(range(40))
    double = open_record(VideoRecord("a", path, None), fps=60).frames
    assert [read_barcode(frame.image) for frame in double] == [n // 2 for n in range(80)]


def test_pixels_become_square(tmp_path, capsys):
    path = tmp_path / "videos" / "a.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for number in range(20):
            image = barcode_frame(number)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert read_frames(path, [0]).shape[1:3] == (64, 96)
    for short_side, size in ((256, (64, 128)), (32, (32, 64))):
        out = tmp_path / str(short_side)
        assert pack(path.parent, out, "--short_side", short_side) == 0
        assert "a.mp4: pixels are 1.333 times as wide as high" in capsys.readouterr().out
        sample = ShardIndex.load(out).entries[0]
        assert (sample.height, sample.width) == size


def test_a_stretch_past_the_end_of_its_video_is_named(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4", 20)
    record = VideoRecord("v_x-003", path, None, seconds=(2.0, 3.0))
    with pytest.raises(ValueError, match=r"a\.mp4: v_x-003, .*2 to 3 s.* 0\.8 s"):
        open_record(record)
    uneven = [20 * n if n < 20 else 400 + 200 * (n - 20) for n in range(40)]
    path = write_barcode_video(tmp_path / "b.mp4", pts=uneven)
    frames = open_record(VideoRecord("b", path, None, seconds=(0.2, 0.8))).frames
    assert [read_barcode(frame.image) for frame in frames] == list(range(10, 22))


def test_a_box_is_cut_from_every_frame_and_must_lie_inside(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4", 20, 64, 96)
    whole = [frame.image for frame in open_record(VideoRecord("a", path, None, 3, 6)).frames]
    boxed = open_record(VideoRecord("a", path, None, 3, 6, box=(8, 16, 40, 64))).frames
    for frame, image in zip(boxed, whole, strict=True):
        np.testing.assert_array_equal(frame.image, image[16:64, 8:40])
    with pytest.raises(ValueError, match=r"a\.mp4: box \(8, 16, 40, 65\) .* 96x64"):
        list(open_record(VideoRecord("a", path, None, box=(8, 16, 40, 65))).frames)
    with pytest.raises(ValueError, match=r"a\.mp4: box \(8, 16, 8, 64\)"):
        VideoRecord("a", path, None, box=(8, 16, 8, 64))
    assert not VideoRecord("a", path, None, box=(8, 16, 40, 64)).is_whole


def test_the_dry_run_counts_what_headers_do_not_tell(tmp_path, capsys):
    root = tmp_path / "videos"
    root.mkdir()
    write_barcode_video(root / "a.h264")
    assert pack(root, tmp_path / "out", "--min_frames", 17, "--dry_run") == 0
    assert "hours, 0 too short, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize("reencode", ["true", "false"])
def test_all_agree_on_a_damaged_video_that_is_allowed(reencode, tmp_path, capsys):
    options = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
    path = tmp_path / "videos" / "a.webm"
    write_barcode_video(path, encoder="libvpx-vp9", options=options)
    damage_packet(path, 20)
    lenient = ("--strict_decoding", "false", "--reencode", reencode)
    assert pack(path.parent, tmp_path / "strict") == 2
    assert pack(path.parent, tmp_path / "out", *lenient) == 0
    assert "damaged packets give no frame: gaps before frame 20" in capsys.readouterr().out
    index = ShardIndex.load(tmp_path / "out")
    times = facts(index, 0)["times"]
    count = index.entries[0].frames
    assert len(times) == count == probe(path, strict=False).frames < 40
    assert max(np.diff(times)) > 0.079  # the gap
    assert not verify(tmp_path / "out", progress=False).problems
    whole = ClipConfig(
        folder=str(tmp_path / "out"), frames=count, height=64, width=96, strict_decoding=False
    )
    clip = ClipDataset(whole, seed=0).clip(0, Cut(0))
    shown = [read_barcode(frame.permute(1, 2, 0).numpy()) for frame in clip.unbind(1)]
    assert shown == [read_barcode(frame.image) for frame in iterate_frames(path, strict=False)]


def write_one_of_each(root):
    """One of each odd file; returns the keys of those that can be packed."""
    write_barcode_video(root / "plain.mp4", 20)
    drop_sync_table(write_barcode_video(root / "nosync.mp4", 30, options={"g": "12"}))
    turn_clockwise(write_barcode_video(root / "turned.mp4", 12))
    set_display_matrix(write_barcode_video(root / "mirrored.mp4", 12), -1, 0, 0, 1)
    write_packed_avi(root / "packed.avi", 21)
    write_barcode_video(root / "rate1000.mkv", 20, fps=1000, pts=[33 * n for n in range(20)])
    write_barcode_video(root / "variable.mp4", 20, pts=[n * n * 10 for n in range(1, 21)])
    write_barcode_video(root / "raw.h264", 15, options={"bf": "2"})
    write_barcode_video(root / "UPPER.MP4", 10)
    latin = write_barcode_video(root / "latin.mp4", 14)
    os.rename(latin, os.fsencode(root) + b"/caf\xe9.mp4")
    write_audio(root / "sound.mp4")
    write_audio(root / "empty.mkv", empty_video=True)
    (root / "page.mp4").write_bytes(b"<!DOCTYPE html>")
    (root / "nothing.mp4").write_bytes(b"")
    damaged = {"encoder": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
    damage_packet(write_barcode_video(root / "damaged.webm", 40, **damaged), 20)
    (root / "notes.txt").write_text("no video")
    return {
        *("plain", "nosync", "turned", "mirrored", "packed", "rate1000", "variable", "raw"),
        *("UPPER", "caf%E9"),
    }


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open shards
@pytest.mark.parametrize("reencode", ["true", "false"])
def test_packing_verification_loader_and_webdataset_agree_on_one_of_each(
    reencode, tmp_path, capsys
):
    root, out = tmp_path / "videos", tmp_path / "out"
    expected = write_one_of_each(root)
    assert pack(root, out, "--on_error", "skip", "--reencode", reencode) == 0
    index = ShardIndex.load(out)
    keys = [sample.key for sample in index.entries]
    assert set(keys) == expected
    failures = json.loads((out / "report.json").read_text())["failures"]
    names = ("sound", "empty", "page", "nothing", "damaged")
    assert {failure["id"] for failure in failures} == set(names)
    assert run_script("verify_data.py", "--data", out, "--workers", 0) in (None, 0)
    assert "no problems" in capsys.readouterr().out

    plain = list(webdataset.WebDataset(str(out / "shard-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in plain] == keys
    for number, (sample, theirs) in enumerate(zip(index.entries, plain, strict=True)):
        (extension,) = sample.members.keys() - {"json"}
        assert theirs[extension] == index.read(number)
        frames = [frame.image for frame in iterate_frames(theirs[extension])]
        assert len(frames) == sample.frames == len(facts(index, number).get("times", frames))
        config = ClipConfig(
            folder=str(out),
            frames=sample.frames,
            stride=1,
            height=sample.height,
            width=sample.width,
            flip=False,
        )
        dataset = ClipDataset(config, seed=0)
        clip = dataset.clip(dataset.positions.tolist().index(number), Cut(0))
        np.testing.assert_array_equal(clip.permute(1, 2, 3, 0).numpy(), np.stack(frames))
