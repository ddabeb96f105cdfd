"""Every public set as it lies on disk, in miniature, with its quirks: what is found and packed."""

import json
import shutil
from pathlib import Path

import pytest

from data.importers import IMPORTERS, ImportResult
from data.importers.sets import UCF101, OpenVid
from data.importers.youtube import ActivityNet, Kinetics400, Kinetics600
from data.shards.index import ShardIndex
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from data.video.decode import read_frames
from tests.builders.videos import (
    read_barcode,
    turn_clockwise,
    write_barcode_video,
    write_packed_avi,
)

FRAMES = 21
SIZE = {"height": 48, "width": 64}
VP9 = {"deadline": "realtime", "cpu-used": "8"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    """One small video of every kind that the sets are made of."""
    root = tmp_path_factory.mktemp("clips")

    def write(name: str, **how) -> Path:
        return write_barcode_video(root / name, FRAMES, **{**SIZE, **how})

    uneven = [n * 40 + n % 3 * 9 for n in range(FRAMES)]
    return {
        "xvid": write_packed_avi(root / "xvid.avi", FRAMES),
        "mpeg2": write("mpeg2.mpg", encoder="mpeg2video", options={"bf": "2"}),
        "vp9": write("vp9.webm", encoder="libvpx-vp9", options=VP9),
        "h264": write("h264.mp4", options={"bf": "2"}, audio=True),
        "mkv": write("h264.mkv", options={"bf": "2"}, shade=90),
        "uneven": write("uneven.mp4", pts=uneven),
        "odd": write("odd.mp4", height=49, width=65, pixels="yuv444p"),
        "deep": write("deep.mp4", pixels="yuv420p10le"),
        "turned": turn_clockwise(write("turned.mp4")),
    }


def place(clip: Path, *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, path)


def check_packed(found: ImportResult, out: Path, clips: dict[str, Path]) -> ShardIndex:
    """Pack what was found; every frame of every video must be there, and every label right."""
    config = ShardConfig(short_side=32)
    write_shards(found, out, config)
    index = ShardIndex.load(out)
    assert [(s.key, s.label) for s in index.entries] == [(r.id, r.label) for r in found.records]
    for number, record in enumerate(found.records):
        if record.path.stat().st_size != clips["turned"].stat().st_size:
            frames = read_frames(index.read(number), range(index.entries[number].frames))
            assert [read_barcode(f) for f in frames] == list(range(FRAMES)), record
    return index


# UCF-101: class from the folder, splits from lists that may have CRLF and other capitals


@pytest.fixture
def ucf(tmp_path, clips) -> Path:
    root = tmp_path / "UCF-101"
    place(
        clips["xvid"],
        root / "ApplyEyeMakeup" / "v_ApplyEyeMakeup_g01_c01.avi",
        root / "ApplyEyeMakeup" / "v_ApplyEyeMakeup_g08_c01.avi",
        root / "HandstandPushups" / "v_HandStandPushups_g01_c01.avi",
        root / "HandstandPushups" / "v_HandStandPushups_g08_c02.avi",
        root / "HandstandPushups" / "v_HandStandPushups_g09_c09.avi",
    )
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    for name, lines in {
        "classInd.txt": ["1 ApplyEyeMakeup", "2 HandstandPushups", "3 YoYo"],
        "trainlist01.txt": [
            "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1",
            "HandstandPushups/v_HandstandPushups_g08_c02.avi 2",
            "YoYo/v_YoYo_g08_c01.avi 3",
        ],
        "testlist01.txt": [
            "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
            "HandstandPushups/v_HandStandPushups_g01_c01.avi",
        ],
    }.items():
        (lists / name).write_text("\r\n".join(lines) + "\r\n", newline="")
    return root


def test_ucf101(ucf, tmp_path, clips):
    train = UCF101(root=ucf, split="train").scan()
    assert [(r.id, r.label) for r in train.records] == [
        ("v_ApplyEyeMakeup_g08_c01", 0),
        ("v_HandStandPushups_g08_c02", 1),
    ]
    assert train.class_names == ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]
    assert train.missing == ["YoYo/v_YoYo_g08_c01.avi"]
    assert train.unlabeled == [str(ucf / "HandstandPushups" / "v_HandStandPushups_g09_c09.avi")]
    test = UCF101(root=ucf, split="test").scan()
    assert [r.id for r in test.records] == [
        "v_ApplyEyeMakeup_g01_c01",
        "v_HandStandPushups_g01_c01",
    ]
    both = UCF101(root=ucf, split="all").scan()
    assert len(both.records) == 5
    check_packed(both, tmp_path / "out", clips)


def test_ucf101_at_other_levels(ucf, tmp_path):
    high = UCF101(root=tmp_path).scan()
    assert high.records == UCF101(root=ucf).scan().records
    assert f"{tmp_path} is 1 level too high; reading {ucf}" in high.notes
    with pytest.raises(ValueError, match=rf"1 level .* Give {ucf}: expected"):
        UCF101(root=ucf / "ApplyEyeMakeup").scan()
    (tmp_path / "videos").mkdir()
    ucf.rename(tmp_path / "videos" / "all")
    higher = UCF101(root=tmp_path).scan()
    assert len(higher.records) == 2
    assert "2 levels too high" in higher.notes[0]
    with pytest.raises(ValueError, match=r"expected .* one folder.*classInd\.txt"):
        UCF101(root=tmp_path / "ucfTrainTestlist").scan()


def test_ucf101_in_folders_of_the_splits_and_without_lists(ucf, tmp_path):
    for part, name in (("train", "ApplyEyeMakeup"), ("test", "HandstandPushups")):
        (ucf / part).mkdir()
        (ucf / name).rename(ucf / part / name)
    assert len(UCF101(root=ucf, split="train").scan().records) == 2  # the lists count
    shutil.rmtree(tmp_path / "ucfTrainTestlist")
    train = UCF101(root=ucf, split="train").scan()
    assert [r.id for r in train.records] == ["v_ApplyEyeMakeup_g01_c01", "v_ApplyEyeMakeup_g08_c01"]
    assert "no ucfTrainTestlist" in train.notes[0]
    shutil.move(ucf / "test" / "HandstandPushups", ucf)
    shutil.move(ucf / "train" / "ApplyEyeMakeup", ucf)
    with pytest.raises(ValueError, match="split=train needs the official lists"):
        UCF101(root=ucf, split="train").scan()
    assert len(UCF101(root=ucf, split="all").scan().records) == 5


def test_ucf101_with_flawed_lists_and_copies(ucf, tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    (lists / "classInd.txt").write_text("1 YoYo\n2 ApplyEyeMakeup\n")
    with pytest.raises(ValueError, match=r"classInd\.txt: .* HandstandPushups"):
        UCF101(root=ucf).scan()
    (lists / "classInd.txt").write_text("ApplyEyeMakeup\n")
    with pytest.raises(ValueError, match="a number and a class name"):
        UCF101(root=ucf).scan()
    (lists / "classInd.txt").unlink()
    with pytest.raises(ValueError, match=r"trainlist02\.txt: no such file"):
        UCF101(root=ucf, split_index=2).scan()
    copy = ucf / "HandstandPushups" / "v_ApplyEyeMakeup_g01_c01.avi"
    shutil.copyfile(ucf / "ApplyEyeMakeup" / copy.name, copy)
    assert f"copies left out: {copy}" in UCF101(root=ucf).scan().notes
    copy.write_bytes(b"another")
    with pytest.raises(ValueError, match="one id, v_ApplyEyeMakeup_g01"):
        UCF101(root=ucf).scan()


# Kinetics: eleven characters of a name are the id; rows and files differ


@pytest.fixture
def k400(tmp_path, clips) -> Path:
    root = tmp_path / "k400"
    place(clips["h264"], root / "train" / "-_abc_DEF-1_000010_000020.mp4")
    place(clips["uneven"], root / "train" / "bbbbbbbbbbb.mp4")
    place(clips["odd"], root / "train" / "ccccccccccc_000003_000013.mp4")
    place(clips["deep"], root / "train" / "zzzzzzzzzzz_000003_000013.mp4")
    (root / "val").mkdir()
    (root / "train" / "ddddddddddd_000000_000010.mp4").write_bytes(b"broken")
    better = root / "replacement" / "replacement_for_corrupted_k400"
    place(clips["turned"], better / "ddddddddddd_000000_000010.mp4")
    place(clips["turned"], better / "vvvvvvvvvvv_000000_000010.mp4")  # of another split
    annotations = root / "annotations"
    annotations.mkdir()
    header = "label,youtube_id,time_start,time_end,split\r\n"
    rows = [
        ("playing piano", "-_abc_DEF-1", "train"),
        ("abseiling", "bbbbbbbbbbb", "train"),
        ('"eating, fast"', "ccccccccccc", "train"),
        ("abseiling", "ddddddddddd", "train"),
        ("abseiling", "eeeeeeeeeee", "train"),
    ]
    lines = [f"{label},{id},0,10,{split}\r\n" for label, id, split in rows]
    (annotations / "train.csv").write_text(header + "".join(lines), newline="")
    (annotations / "val.csv").write_text(header + "zumba,vvvvvvvvvvv,0,10,validate\r\n", newline="")
    return root


def test_kinetics400(k400, tmp_path, clips):
    found = Kinetics400(root=k400).scan()
    assert found.class_names == ["abseiling", "eating, fast", "playing piano", "zumba"]
    assert [(r.id, r.label) for r in found.records] == [
        ("-_abc_DEF-1", 2),
        ("bbbbbbbbbbb", 0),
        ("ccccccccccc", 1),
        ("ddddddddddd", 0),
    ]
    assert found.records[3].path.parent.name == "replacement_for_corrupted_k400"
    assert found.notes == ["1 videos read from replacement: ddddddddddd"]
    assert found.missing == ["eeeeeeeeeee"]
    assert found.unlabeled == [str(k400 / "train" / "zzzzzzzzzzz_000003_000013.mp4")]
    index = check_packed(found, tmp_path / "out", clips)
    sizes = {s.key: (s.height, s.width) for s in index.entries}
    assert sizes["ccccccccccc"] == (32, 42)
    assert sizes["ddddddddddd"] == (42, 32)  # turned upright


def test_kinetics_in_class_folders(k400):
    train = k400 / "train"
    (train / "playing_piano").mkdir()
    (train / "Eating fast").mkdir()
    (train / "-_abc_DEF-1_000010_000020.mp4").rename(train / "playing_piano" / "-_abc_DEF-1.mp4")
    (train / "bbbbbbbbbbb.mp4").rename(train / "playing_piano" / "bbbbbbbbbbb.mp4")
    (train / "ccccccccccc_000003_000013.mp4").rename(train / "Eating fast" / "ccccccccccc.mp4")
    found = Kinetics400(root=k400).scan()
    assert [r.label for r in found.records] == [2, 0, 1, 0]
    assert "another class than annotated" in found.notes[1]
    assert "bbbbbbbbbbb.mp4" in found.notes[1]
    shutil.rmtree(k400 / "annotations")
    found = Kinetics400(root=k400).scan()
    assert found.class_names == ["Eating fast", "playing_piano"]
    assert [r.label for r in found.records] == [1, 1, 0, None, None]
    assert "no annotations" in found.notes[-1]


def test_kinetics_at_other_levels_and_without_split_folders(k400, tmp_path):
    high = Kinetics400(root=tmp_path).scan()
    assert "1 level too high" in high.notes[0]
    assert len(high.records) == 4
    with pytest.raises(ValueError, match=rf"1 level too low\. Give {k400}"):
        Kinetics400(root=k400 / "train").scan()
    with pytest.raises(ValueError, match=r"expected .* test/.* annotations/"):
        Kinetics400(root=k400, split="test").scan()
    loose = tmp_path / "other" / "deep" / "er"
    (k400 / "train").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", loose)
    found = Kinetics400(root=loose, annotations=k400 / "annotations").scan()
    assert "no folder train/: all videos below" in found.notes[0]
    assert len(found.records) == 4


def test_kinetics_with_flawed_annotations(k400, tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        Kinetics400(root=k400, annotations=tmp_path / "none").scan()
    table = tmp_path / "train.csv"
    table.write_text("label,id\na,b\n")
    with pytest.raises(ValueError, match=r"no column 'youtube_id'; .* label, id"):
        Kinetics400(root=k400, annotations=table).scan()
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as csv"):
        Kinetics400(root=k400, annotations=table).scan()
    table.write_text("youtube_id\nkkkkkkkkkkk\n")
    with pytest.raises(ValueError, match=r"none of its .*another split or set"):
        Kinetics400(root=k400, annotations=table).scan()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"csv or txt file for split=train"):
        Kinetics400(root=k400, annotations=tmp_path / "empty").scan()


def test_kinetics600_keeps_what_its_annotations_leave_out(k400):
    annotations = k400 / "annotations"
    shutil.rmtree(annotations)
    annotations.mkdir()
    names = "train/-_abc_DEF-1_000010_000020.mp4 playing piano\nbbbbbbbbbbb_000001_000011\n"
    (annotations / "train.txt").write_text(names + "eeeeeeeeeee_000001_000011\n")
    found = Kinetics600(root=k400).scan()
    assert found.class_names == ["playing piano"]
    labels = {record.id: record.label for record in found.records}
    assert labels == {
        "-_abc_DEF-1": 0,
        **dict.fromkeys(["bbbbbbbbbbb", "ccccccccccc", "ddddddddddd", "zzzzzzzzzzz"]),
    }
    assert found.missing == ["eeeeeeeeeee"]
    assert len(found.unlabeled) == 3
    assert len(Kinetics600(root=k400, unlabeled="skip").scan().records) == 2


# ActivityNet: stretches of long videos, from several archives


@pytest.fixture
def activitynet(tmp_path, clips) -> Path:
    root = tmp_path / "activitynet"
    place(clips["mkv"], root / "v1-2" / "train" / "v_aaaaaaaaaaa.mkv")
    place(clips["vp9"], root / "v1-3" / "train_val" / "v_v_bbbbbb_-b.webm")
    place(clips["h264"], root / "v1-3" / "train_val" / "v_ccccccccccc.mp4")
    place(clips["h264"], root / "v1-3" / "test" / "v_ttttttttttt.mp4")
    place(clips["h264"], root / "v1-3" / "test" / "v_xxxxxxxxxxx.mp4")
    place(clips["mkv"], root / "v1-3" / "train_val" / "v_aaaaaaaaaaa.mkv")

    def entry(subset: str, *stretches: tuple[str, list[float]]) -> dict:
        annotations = [{"label": label, "segment": segment} for label, segment in stretches]
        return {"subset": subset, "duration": 0.8, "annotations": annotations}

    database = {
        "aaaaaaaaaaa": entry("training", ("Rafting", [0, 0.4]), ("Zumba", [0.4, 0.8])),
        "v_bbbbbb_-b": entry("training", ("Zumba", [0.2, 0.7]), ("Zumba", [0.3, 0.3])),
        "ccccccccccc": entry("validation", ("Cricket", [0, 0.8])),
        "ttttttttttt": entry("testing"),
        "mmmmmmmmmmm": entry("training", ("Rafting", [0, 9])),
    }
    (root / "activity_net.v1-3.min.json").write_text(json.dumps({"database": database}))
    return root


def test_activitynet(activitynet, tmp_path):
    found = ActivityNet(root=activitynet).scan()
    assert found.class_names == ["Cricket", "Rafting", "Zumba"]
    assert [(r.id, r.label) for r in found.records] == [
        ("v_aaaaaaaaaaa-000", 1),
        ("v_aaaaaaaaaaa-001", 2),
        ("v_v_bbbbbb_-b-000", 2),
    ]
    assert found.missing == ["mmmmmmmmmmm"]
    assert found.unlabeled == [str(activitynet / "v1-3" / "test" / "v_xxxxxxxxxxx.mp4")]
    assert "copies left out" in found.notes[0]
    assert found.notes[1] == "empty stretches left out: v_bbbbbb_-b [0.3, 0.3]"
    out = tmp_path / "out"
    config = ShardConfig(short_side=32, min_frames=5)
    write_shards(found, out, config)
    index = ShardIndex.load(out)
    stretches = [range(10), range(10, 20), range(5, 18)]  # at 25 frames per second
    for number, stretch in enumerate(stretches):
        frames = read_frames(index.read(number), range(index.entries[number].frames))
        assert abs(len(frames) - len(stretch)) <= 1
        codes = [read_barcode(frame) for frame in frames]
        assert codes == list(range(stretch[0], stretch[0] + len(frames)))


def test_activitynet_whole_and_test(activitynet):
    whole = ActivityNet(root=activitynet, parts="whole").scan()
    assert [(r.id, r.label, r.is_whole) for r in whole.records] == [
        ("v_aaaaaaaaaaa", None, True),
        ("v_v_bbbbbb_-b", None, True),
    ]
    assert whole.class_names == []
    assert [r.id for r in ActivityNet(root=activitynet, split="test").scan().records] == [
        "v_ttttttttttt"
    ]


def test_activitynet_mistakes(activitynet, tmp_path):
    file = activitynet / "activity_net.v1-3.min.json"
    with pytest.raises(ValueError, match=r"no such folder; .* v_<id>\.mp4"):
        ActivityNet(root=tmp_path / "none").scan()
    file.rename(tmp_path / "activity.json")
    assert len(ActivityNet(root=activitynet).scan().records) == 3  # found beside it
    with pytest.raises(ValueError, match=r"0 json .*: activity_net\.v1-3\.min\.json"):
        ActivityNet(root=activitynet / "v1-3").scan()
    (tmp_path / "activity.json").write_text('{"database": {"a": {"subset": "training"}}}')
    with pytest.raises(ValueError, match=r"activity\.json: a lacks a subset"):
        ActivityNet(root=activitynet).scan()
    (tmp_path / "activity.json").write_text("[]")
    with pytest.raises(ValueError, match="has no database"):
        ActivityNet(root=activitynet).scan()


# OpenVid: a csv with commas, quotes and line breaks in captions; partial downloads


@pytest.fixture
def openvid(tmp_path, clips) -> Path:
    root = tmp_path / "openvid"
    place(clips["h264"], root / "video" / "--0F3XyqJIQ_12_0to121.mp4")
    place(clips["mpeg2"], root / "video" / "celebv_b.1.mpg")
    place(clips["h264"], root / "video" / "stranger.mp4")
    header = "video,caption,aesthetic score,motion score,frame,fps,seconds\n"
    long = "x" * 200_000
    rows = (
        f'--0F3XyqJIQ_12_0to121.mp4,"A man, a ""plan"",\na canal {long}",5.1,2.0,21,25,0.84\n'
        "celebv_b.1.mpg,short,4.9,1.0,21,25,0.84\nabsent.mp4,none,4.0,1.0,99,25,4\n"
    )
    (root / "data" / "train").mkdir(parents=True)
    (root / "data" / "train" / "OpenVid-1M.csv").write_text(header + rows)
    (root / "data" / "train" / "OpenVidHD.csv").write_text(header + rows.split("\n", 2)[2])
    return root


def test_openvid(openvid, tmp_path, clips):
    found = OpenVid(root=openvid).scan()
    assert [r.id for r in found.records] == ["--0F3XyqJIQ_12_0to121", "celebv_b_1"]
    assert found.missing == ["absent.mp4"]
    assert found.unlabeled == [str(openvid / "video" / "stranger.mp4")]
    assert found.class_names == []
    check_packed(found, tmp_path / "out", clips)
    high = OpenVid(root=tmp_path, subset="HD").scan()
    assert [r.id for r in high.records] == ["celebv_b_1"]
    assert "1 level too high" in high.notes[0]


def test_openvid_mistakes(openvid, tmp_path):
    with pytest.raises(ValueError, match=rf"1 level too low\. Give {openvid}"):
        OpenVid(root=openvid / "video").scan()
    far = shutil.copytree(openvid / "data" / "train", tmp_path / "a" / "b" / "c" / "d")
    with pytest.raises(ValueError, match=r"expected .* video/.* OpenVid-1M\.csv"):
        OpenVid(root=far).scan()
    table = tmp_path / "table.csv"
    table.write_text("clip,caption\na.mp4,b\n")
    with pytest.raises(ValueError, match=r"no column 'video'; it has clip, caption"):
        OpenVid(root=openvid, annotations=table).scan()
    table.write_text("video\na.mp4\n")
    with pytest.raises(ValueError, match="none of its 3 videos is in"):
        OpenVid(root=openvid, annotations=table).scan()
    shutil.rmtree(openvid / "data")
    with pytest.raises(ValueError, match=r"no OpenVid-1M\.csv in it"):
        OpenVid(root=openvid).scan()


@pytest.mark.parametrize("name", sorted(IMPORTERS.keys() - {"digits"}))  # which makes its root
def test_every_importer_says_that_the_root_is_not_there(name, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        IMPORTERS[name](root=tmp_path / "nowhere").scan()
