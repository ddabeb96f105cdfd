"""Any folder of videos: ids, classes, links and mistakes."""

from pathlib import Path

import pytest

from data.importers.folders import Folder
from data.video.video_record import VideoRecord


def scan(root: Path, **options) -> tuple[list[VideoRecord], list[str]]:
    found = Folder(root=root, **options).scan()
    return found.records, found.class_names


@pytest.fixture
def videos(tmp_path) -> Path:
    """Names are enough: nothing is opened."""
    for name in (
        "run/a.b.mp4",
        "run/c.avi",
        "walk/d.mp4",
        "walk/e.webm",
        "walk/deep/run/f.MP4",
        "walk/notes.txt",
        ".hidden/g.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_folder_gives_ids_classes_and_labels(videos):
    records, class_names = scan(videos)
    assert class_names == ["run", "walk"]
    assert [(record.id, record.label) for record in records] == [
        ("run__a_b", 0),
        ("run__c", 0),
        ("walk__d", 1),
        ("walk__deep__run__f", 0),
        ("walk__e", 1),
    ]
    unlabeled, none = scan(videos, labels="none")
    assert none == []
    assert {record.label for record in unlabeled} == {None}


def test_folder_keeps_ids_apart_and_survives_links_in_circles(tmp_path):
    for name in ("x/a.mp4", "x/a.avi", "x/A.MP4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "x" / "back").symlink_to(tmp_path)
    ids = [record.id for record in scan(tmp_path)[0]]
    assert len(set(ids)) == 3
    assert ids[0] == "x__A"
    assert all(len(id) == len("x__a-12345678") for id in ids[1:])


def test_folder_mistakes(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        scan(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no videos .*\.mp4"):
        scan(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.mp4: .*labels=none"):
        scan(tmp_path)


def test_split_by_hash(videos):
    parts = [scan(videos, split=split, holdout=0.5)[0] for split in ("train", "test")]
    assert sorted(r.id for part in parts for r in part) == [r.id for r in scan(videos)[0]]
    with pytest.raises(ValueError, match="holdout=2 must be below 1"):
        scan(videos, split="test", holdout=2)
