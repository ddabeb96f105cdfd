"""Sets whose videos are folders or zips of frames: order, nesting, quirks, and what is packed."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.importers import ImportResult
from data.importers.folders import Folder, FrameFolders, frame_number
from data.importers.sets import FaceForensics, SkyTimelapse
from data.shards.index import ShardIndex
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from data.video.container import DecodeError
from data.video.decode import read_frames
from data.video.video_record import VideoRecord, open_record
from tests.builders.commands import run_script
from tests.builders.videos import read_barcode, write_barcode_video, write_frames

CONFIG = ShardConfig(short_side=32, min_frames=5)


def check_packed(records: list[VideoRecord], out: Path, names=(), fps: float = 25.0) -> None:
    write_shards(ImportResult(records, list(names)), out, CONFIG)
    index = ShardIndex.load(out)
    assert len(index) == len(records)
    for number, (sample, record) in enumerate(zip(index.entries, records, strict=True)):
        frames = read_frames(index.read(number), range(sample.frames))
        assert [read_barcode(frame) for frame in frames] == list(range(len(record.images)))
        assert (sample.fps, sample.label) == (fps, record.label)


def zipped(folder: Path, path: Path) -> Path:
    """A zip of a folder, with what macOS adds."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/._000001.png", b"")
    return path


def test_frames_are_ordered_by_the_number_at_the_end():
    assert frame_number("BZ_3_frames_00000046.jpg") == 46
    assert frame_number("clip_7/frame12.png") == 12
    assert frame_number("cover.png") is None


@pytest.fixture
def sky(tmp_path) -> Path:
    root = tmp_path / "sky_timelapse"
    train = root / "sky_train"
    name = "07U1fSrk9oI_1_frames_{}.jpg"
    write_frames(train / "07U1fSrk9oI" / "07U1fSrk9oI_1", range(96, 104), name)  # 99 before 100
    again = train / "5f6QlFuqVYA" / "5f6QlFuqVYA_2" / "5f6QlFuqVYA_2"
    write_frames(again, range(46, 52), "5f6QlFuqVYA_2_frames_{:08d}.jpg")
    (train / "5f6QlFuqVYA" / "5f6QlFuqVYA_3").mkdir()
    write_frames(root / "sky_test" / "AAA" / "AAA_1", [1, 2, 4, 5, 6], "AAA_1_frames_{:08d}.jpg")
    return root


def test_sky_timelapse(sky, tmp_path):
    train = SkyTimelapse(root=sky, fps=10).scan()
    assert [record.id for record in train.records] == [
        "sky_train__07U1fSrk9oI__07U1fSrk9oI_1",
        "sky_train__5f6QlFuqVYA__5f6QlFuqVYA_2__5f6QlFuqVYA_2",
    ]
    assert train.notes == [f"empty folders: {sky / 'sky_train/5f6QlFuqVYA/5f6QlFuqVYA_3'}"]
    check_packed(train.records, tmp_path / "out", fps=10.0)
    test = SkyTimelapse(root=sky, split="test").scan()
    assert test.notes == ["numbers of frames missing or repeated in: sky_test/AAA/AAA_1"]
    assert len(SkyTimelapse(root=sky, split="all").scan().records) == 3


def test_sky_timelapse_at_other_levels(sky, tmp_path):
    assert "1 level too high" in SkyTimelapse(root=tmp_path).scan().notes[0]
    with pytest.raises(ValueError, match=rf"1 level .* Give {sky}: .*07U1fSrk9oI/"):
        SkyTimelapse(root=sky / "sky_train").scan()
    shutil.rmtree(sky / "sky_test")
    with pytest.raises(ValueError, match=r"expected sky_test/, but found sky_train/"):
        SkyTimelapse(root=sky, split="test").scan()
    with pytest.raises(ValueError, match="fps=0 must be above 0"):
        SkyTimelapse(root=sky, fps=0)


def test_faceforensics_videos(tmp_path):
    root = tmp_path / "FaceForensics"
    for part in ("train", "val"):
        for kind in ("original", "altered", "mask"):
            path = root / part / kind / "same.name.avi"
            write_barcode_video(path, 20, 48, 64, encoder="mpeg4", shade=len(kind + part) * 9)
    found = FaceForensics(root=root).scan()
    assert [r.id for r in found.records] == ["train__original__same_name"]
    assert found.records[0].path == root / "train" / "original" / "same.name.avi"
    both = FaceForensics(root=root, split="all", kind="altered").scan()
    assert [r.id for r in both.records] == [
        "train__altered__same_name",
        "val__altered__same_name",
    ]
    with pytest.raises(ValueError, match=r"expected test/, but found train/, val/"):
        FaceForensics(root=root, split="test").scan()
    with pytest.raises(ValueError, match=rf"too low\. Give {root}"):
        FaceForensics(root=root / "train" / "original").scan()
    (root / "train" / "original").rename(root / "train" / "videos")
    assert [r.id for r in FaceForensics(root=root).scan().records] == ["train__videos__same_name"]


@pytest.mark.parametrize(("given", "fps", "frames"), [((), 25, 20), (("--fps", 5), 5, 4)])
def test_faceforensics_videos_take_another_rate_where_one_is_given(given, fps, frames, tmp_path):
    write_barcode_video(tmp_path / "ff" / "train" / "videos" / "a.mp4", 20)
    usual = ("--root", tmp_path / "ff", "--out", tmp_path / "out", "--workers", 0)
    code = run_script("make_shards.py", "faceforensics", *usual, "--min_frames", 1, *given)
    entry = ShardIndex.load(tmp_path / "out").entries[0]
    assert (code, entry.fps, entry.frames) == (0, fps, frames)


def test_faceforensics_crops_in_folders_and_zips(tmp_path):
    crops = tmp_path / "crops"
    write_frames(crops / "vid_1", range(7))
    write_frames(crops / "vid_2", range(100, 108), shade=60)
    with pytest.raises(ValueError, match="split=train, but there are no folders"):
        FaceForensics(root=crops).scan()
    folders = FaceForensics(root=crops, split="all").scan()
    assert [record.id for record in folders.records] == ["vid_1", "vid_2"]
    check_packed(folders.records, tmp_path / "a")
    archive = zipped(crops, tmp_path / "ff.zip")
    inside = FaceForensics(root=archive, split="all").scan()
    assert [record.id for record in inside.records] == ["vid_1", "vid_2"]
    check_packed(inside.records, tmp_path / "b")
    pairs = [(tmp_path / name / "shard-000000.tar").read_bytes() for name in "ab"]
    assert len(pairs[0]) == len(pairs[1])
    (tmp_path / "split" / "train").mkdir(parents=True)
    archive.rename(tmp_path / "split" / "train" / "ff.zip")
    found = FaceForensics(root=tmp_path / "split").scan()
    assert [record.id for record in found.records] == ["train__ff__vid_1", "train__ff__vid_2"]
    (tmp_path / "split" / "train" / "ff.zip").write_bytes(b"PK, but cut")
    with pytest.raises(ValueError, match=r"ff\.zip: cannot be read"):
        FaceForensics(root=tmp_path / "split").scan()


def test_faceforensics_plus_plus_is_another_set(tmp_path):
    deep = tmp_path / "original_sequences" / "youtube" / "c23" / "videos"
    write_barcode_video(deep / "000.mp4", 3, 48, 64)
    for root in (tmp_path, deep, tmp_path.parent):
        with pytest.raises(ValueError, match=r"this is FaceForensics\+\+ .*another set"):
            FaceForensics(root=root, split="all").scan()


def test_frame_folders_with_classes(tmp_path):
    root = tmp_path / "motion"
    write_frames(root / "walk" / "a.1", range(6))
    write_frames(root / "run" / "b", range(8), "{}.png", shade=90)  # no leading zeros
    found = FrameFolders(root=root, fps=12.5).scan()
    assert [(r.id, r.label) for r in found.records] == [("run__b", 0), ("walk__a_1", 1)]
    assert found.class_names == ["run", "walk"]
    check_packed(found.records, tmp_path / "out", found.class_names, fps=12.5)
    archive = FrameFolders(root=zipped(root, tmp_path / "motion.zip"), fps=12.5).scan()
    assert [(r.id, r.label) for r in archive.records] == [("run__b", 0), ("walk__a_1", 1)]
    with pytest.raises(ValueError, match=r"root=.*run is one level too low"):
        FrameFolders(root=root / "run").scan()
    assert len(FrameFolders(root=root / "run", labels="none").scan().records) == 1
    with pytest.raises(ValueError, match=rf"one level .* Give {root / 'run'}"):
        FrameFolders(root=root / "run" / "b").scan()
    with pytest.raises(ValueError, match="use the set frames"):
        Folder(root=root / "run").scan()
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"expected folders of images, .* nothing"):
        FrameFolders(root=tmp_path / "none").scan()


def test_images_are_read_exactly_and_faults_are_named(tmp_path):
    folder = write_frames(tmp_path / "clip", range(5))
    names = tuple(sorted(path.name for path in folder.iterdir()))

    def read(**change) -> list[np.ndarray]:
        record = VideoRecord("clip", folder, None, images=names, fps=25, **change)
        return [frame.image for frame in open_record(record).frames]

    assert [read_barcode(image) for image in read()] == [0, 1, 2, 3, 4]
    assert [read_barcode(image) for image in read(start=1, end=3)] == [1, 2]
    with pytest.raises(DecodeError, match="no frame 9; it has fewer images"):
        read(start=9)
    with pytest.raises(ValueError, match="images need fps"):
        VideoRecord("clip", folder, None, images=names)
    faults = {
        "all|earlier frames have": lambda path: Image.new("RGB", (8, 8)).save(path),
        "the file is empty": lambda path: path.write_bytes(b""),
        "cannot be decoded": lambda path: path.write_bytes(whole[: len(whole) // 2]),
        "8 bits are needed": lambda path: Image.new("I;16", (64, 48)).save(path),
        "No such file": lambda path: path.unlink(),
    }
    whole = (folder / names[3]).read_bytes()
    for message, spoil in faults.items():
        spoil(folder / names[3])
        with pytest.raises(DecodeError, match=rf"clip/{names[3]}: .*({message})"):
            read()


def test_images_cannot_be_stored_as_they_are(tmp_path):
    write_frames(tmp_path / "set" / "clip", range(5))
    found = FrameFolders(root=tmp_path / "set", labels="none").scan()
    with pytest.raises(ValueError, match="images or computed"):
        write_shards(found, tmp_path / "out", ShardConfig(reencode=False))
