"""The demo's corpus: parts apart in time, every class in both, clear errors without a clip."""

import pytest

from data.importers import ImportResult
from data.importers.wheels import SHOTS, demo_records, segments
from data.shards.index import ShardIndex
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
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
            if seen.path == held_out.path and (
                seen.label == held_out.label or seen.box == held_out.box
            ):
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
                in_time = a.end <= b.start or b.end <= a.start
                in_space = a.box and b.box and (a.box[2] <= b.box[0] or b.box[2] <= a.box[0])
                assert in_time or in_space, (a, b)


def test_segments_pack_to_their_own_frames(clips, tmp_path):
    records, class_names = demo_records(clips, "test")
    write_shards(ImportResult(records, class_names), tmp_path, ShardConfig(short_side=32))
    index = ShardIndex.load(tmp_path)
    assert len(index) == len(records)
    for number, record in enumerate(records):
        frames = read_frames(index.read(number), range(record.end - record.start))
        assert [read_barcode(frame) for frame in frames] == list(range(record.start, record.end))


def test_missing_clips_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no bikes\.mp4, .*fetch_clips"):
        demo_records(tmp_path, "train")
