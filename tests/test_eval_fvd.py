"""The FVD command end to end on small real videos, with a classifier in place of I3D."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.files import write_json
from data.video.encode import write_video
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.extractors import load_classifier
from eval.features.feature_cache import Extraction, extract_features
from eval.metrics.frechet import frechet_from_features
from eval.protocols.fvd import evaluate_fvd, real_features
from scripts import report
from tests.builders.clip_folders import write_folder, write_folders
from tests.builders.commands import run_script
from tests.builders.packed import pack
from tests.builders.videos import barcode_frame, write_barcode_video, write_frames

PLAIN = Extraction()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("folders"))


def arguments(folders: Path, fake: str) -> list[str]:
    paths = {"real": folders / "real", "fake": folders / fake, "classifier": folders / "tiny"}
    return [*(f"--{name}={path}" for name, path in paths.items()), "--frames=4", "--stride_real=1"]


def command(folders: Path, fake: str, *extra: str) -> int:
    """Exit code of the script."""
    return run_script("eval_fvd.py", *arguments(folders, fake), *extra)


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
def test_command(folders, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert command(folders, "fake", "--out", str(out), "--split", "train") == 0
    result = json.loads(out.read_text())
    assert result["name"] == "fvd4_4f_tiny"
    assert result["value"] > 0
    assert result["std"] > 0
    protocol = result["protocol"]
    assert (protocol["split"], protocol["stride_real"], protocol["skip_fake"]) == ("train", 1, 0)
    assert (protocol["clips_real"], protocol["network"]["name"]) == (4, "tiny")
    assert len(protocol["real_content"]) == 64
    assert (result["real"]["clips"], result["fake"]["clips"]) == (4, 4)
    assert len(result["extractor"]["weights_sha256"]) == 64
    assert not result["extractor"]["published_weights"]
    assert "only compares with scores of as many clips" in result["notes"][0]
    line = capsys.readouterr().out
    assert line.startswith("fvd4_4f_tiny = ")
    for part in ("4 real clips at stride 1, split train", "4 generated at stride 1, from frame 0"):
        assert part in line


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
def test_command_prints_json_without_a_file(folders, capsys):
    assert command(folders, "fake", "--resamples", "0") == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["std"] is None
    assert output.err.splitlines()[-1].startswith("fvd4_4f_tiny = ")


def test_command_refuses_in_one_line(folders, capsys):
    assert command(folders, "one") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "1 clip, but a distance needs at least 2" in last
    assert command(folders, "real", "--weights", "i3d.pt") == 2
    assert "classifier replaces I3D" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
@pytest.mark.filterwarnings("always:2 real videos")
def test_a_broken_real_video_stops_or_is_skipped_and_named(folders, tmp_path, capsys, caplog):
    shutil.copytree(folders / "real", tmp_path / "real")
    (tmp_path / "real" / "header.mkv").write_bytes(b"no video")
    frames = bytearray((folders / "real" / "0.mkv").read_bytes())
    for place in range(len(frames) // 4, len(frames) // 2):  # the header stays
        frames[place] ^= 0x55
    (tmp_path / "real" / "frames.mkv").write_bytes(frames)
    out = tmp_path / "result.json"
    options = [f"--real={tmp_path / 'real'}", f"--fake={folders / 'fake'}"]
    options += [f"--classifier={folders / 'tiny'}", "--frames=4", "--stride_real=1"]
    assert run_script("eval_fvd.py", *options, f"--out={out}") == 2
    assert re.search("(header|frames).mkv: ", capsys.readouterr().err)
    assert run_script("eval_fvd.py", *options, f"--out={out}", "--on_error=skip") == 0
    assert "warning: 2 real videos cannot be read and were left out" in caplog.text
    result = json.loads(out.read_text())
    assert result["real"]["clips"] == 4
    assert set(result["real"]["unreadable"]) == {"header.mkv", "frames.mkv"}
    assert any(note.startswith("2 real videos cannot be read") for note in result["notes"])
    whole = run_script("eval_fvd.py", *arguments(folders, "fake"), f"--out={tmp_path}/whole.json")
    assert (whole, json.loads((tmp_path / "whole.json").read_text())["value"]) == (
        0,
        pytest.approx(result["value"], rel=1e-6),
    )


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
def test_a_set_of_real_videos_and_noise_are_scored_in_place_of_generated_ones(folders, tmp_path):
    write_folder(tmp_path / "mixed", [10, 70], fps=8)
    write_folder(tmp_path / "mixed", [130, 190], fps=8.5)
    values = {}
    for name, extra in (("real", []), ("noise", ["--noise_fake=0.5"])):
        out = tmp_path / f"{name}.json"
        options = [x for x in arguments(folders, "fake") if not x.startswith("--fake=")]
        options += [f"--fake={tmp_path / 'mixed'}", *extra, "--fake_is_real", f"--out={out}"]
        assert run_script("eval_fvd.py", *options) == 0
        values[name] = json.loads(out.read_text())["value"]
    assert values["noise"] > values["real"]
    assert run_script("eval_fvd.py", *[x for x in options if x != "--fake_is_real"]) == 2


def sources(folders: Path, fake: str, **changes) -> list[ClipSource]:
    return [
        ClipSource(folders / name, ClipProtocol(frames=4, start="first", **changes), progress=False)
        for name in ("real", fake)
    ]


def evaluate(pair: list[ClipSource], folders: Path, **options) -> dict:
    real, fake = pair
    extractor = load_classifier(folders / "tiny")
    extraction = options.pop("extraction", PLAIN)
    features = real_features(real, extractor, extraction)
    return evaluate_fvd(
        real, fake, extractor, extraction, features=features, resamples=0, **options
    )


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
def test_identical_folders_are_at_zero_and_others_are_not(folders):
    same = evaluate(sources(folders, "real"), folders)
    assert same["value"] == pytest.approx(0, abs=1e-6)
    assert same["std"] is None
    other = evaluate(sources(folders, "fake"), folders)
    assert other["value"] > 1e3 * max(same["value"], 1e-9)


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
def test_value_does_not_depend_on_batches(folders):
    values = [
        evaluate(sources(folders, "fake"), folders, extraction=replace(PLAIN, batch_size=size))[
            "value"
        ]
        for size in (1, 3, 8)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_value_is_that_of_the_pooled_features(folders):
    extractor = load_classifier(folders / "tiny")
    pair = sources(folders, "fake")
    features = [extract_features(s, extractor, PLAIN) for s in pair]
    assert features[0].ids == pair[0].ids
    with pytest.warns(UserWarning, match="4 clips: the distance is biased upwards"):
        result = evaluate(pair, folders)
    assert result["value"] == frechet_from_features(features[0].values, features[1].values)


def test_unequal_rates_are_refused_unless_forced(folders, tmp_path):
    slow = write_folder(tmp_path / "slow", [0, 60, 120, 180], fps=4)
    real = sources(folders, "real")[0]
    fake = ClipSource(slow, real.protocol, progress=False)
    with pytest.raises(ValueError, match=r"8 frames/s .stride 1.* at 4"):
        evaluate([real, fake], folders)
    with pytest.warns(UserWarning, match="4 clips"):
        evaluate([real, fake], folders, allow_rate_mismatch=True)
    halved = ClipSource(slow, ClipProtocol(frames=3, start="first"), progress=False)
    with pytest.raises(ValueError, match="4 real frames against 3"):
        evaluate([real, halved], folders)
    every_other = ClipSource(folders / "real", ClipProtocol(frames=3, stride=2), progress=False)
    with pytest.warns(UserWarning, match="4 clips"):
        evaluate([every_other, halved], folders)


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
def test_scores_of_different_protocols_never_share_a_table(folders, tmp_path):
    for name, changes in (("a", {}), ("again", {}), ("other", {"seed": 1})):
        result = evaluate(sources(folders, "fake", **changes), folders)
        write_json(tmp_path / f"{name}.json", result)
    page = tmp_path / "page.html"
    results = [str(tmp_path / f"{name}.json") for name in ("a", "again", "other")]
    report.run(report.MakeReport(results=results, out=str(page)))
    tables = page.read_text().split("<table")[1:]
    rows = [table.partition("</table>")[0] for table in tables]
    assert [("again" in row, "other" in row) for row in rows] == [(True, False), (False, True)]
    assert "Does not compare with table (1): seed was 0, now 1" in tables[1]
    old = json.loads((tmp_path / "a.json").read_text())
    del old["protocol"]
    write_json(tmp_path / "old.json", old)
    with pytest.raises(ValueError, match="old: made by an older version"):
        report.run(report.MakeReport(results=[str(tmp_path / "old.json")], out=str(page)))


def test_features_are_cached_under_their_content(folders, tmp_path, monkeypatch):
    extractor = load_classifier(folders / "tiny")
    source, cached = sources(folders, "real")[0], replace(PLAIN, cache=tmp_path)
    first = extract_features(source, extractor, cached)
    (file,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(ClipSource, "batches", lambda *_: pytest.fail("the network ran again"))
        again = extract_features(source, extractor, cached)
    np.testing.assert_array_equal(first.values, again.values)
    assert first.ids == again.ids
    other = sources(folders, "real", seed=1)[0]
    extract_features(other, extractor, cached)
    assert len(list(tmp_path.iterdir())) == 2
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged"):
        extract_features(source, extractor, cached)


def test_non_finite_features_name_the_clip(folders):
    extractor = load_classifier(folders / "tiny")
    with torch.no_grad():
        for parameter in extractor.network.parameters():
            parameter.fill_(torch.nan)
    source = sources(folders, "real")[0]
    with pytest.raises(ValueError, match=rf"{source.ids[0]} are not finite"):
        extract_features(source, extractor, PLAIN)


def test_missing_classifier_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"Make it with scripts/train_classifier.py"):
        load_classifier(tmp_path / "none")


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
def test_folders_of_frames_equal_the_videos_they_came_from(tmp_path):
    numbers = list(range(6))
    write_frames(tmp_path / "frames" / "a", numbers)
    write_frames(tmp_path / "frames" / "b", numbers, shade=90)
    for name, shade in (("a", 0), ("b", 90)):
        clip = np.stack([barcode_frame(i, 48, 64, shade) for i in numbers])
        write_video(tmp_path / "videos" / f"{name}.mkv", clip, 8, codec="ffv1")
    protocol = ClipProtocol(frames=4, start="center", num_clips=None)
    frames, videos = (
        ClipSource(tmp_path / kind, protocol, generated=True, progress=False)
        for kind in ("frames", "videos")
    )
    assert (frames.describe()["kind"], frames.rate) == ("frames", None)
    expected = {Path(id).stem: clip for id, clip in (videos[i] for i in range(2))}
    for id, clip in (frames[i] for i in range(2)):
        torch.testing.assert_close(clip, expected[id], rtol=0, atol=0)
    first = frames.content()
    write_frames(tmp_path / "frames" / "b", numbers, shade=91)
    changed = ClipSource(tmp_path / "frames", protocol, generated=True, progress=False)
    assert changed.content() != first


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
@pytest.mark.filterwarnings("ignore:.*have the features of another")
@pytest.mark.filterwarnings("ignore:2 of 3 generated videos")
def test_real_videos_of_a_variable_rate_bring_a_warning(folders, tmp_path):
    """A stride counts frames, so that theirs lie unevenly apart in time."""
    uneven = [100 * n + 60 * (n % 2) for n in range(20)]
    for name in ("uneven", "again"):
        write_barcode_video(tmp_path / f"{name}.mkv", 20, pts=uneven)
    write_barcode_video(tmp_path / "even.mkv", 20, fps=10)
    protocol = ClipProtocol(frames=4, num_clips=None)
    real = ClipSource(tmp_path, protocol, progress=False)
    (note,) = real.notes("real")
    assert note.startswith("2 of 3 real videos are unusual")
    assert re.search(r"uneven\.mkv \(.*variable frame rate: frames last 0\.04 to 0\.16 s", note)
    assert "even.mkv (" not in note.replace("uneven.mkv", "")
    assert "make_shards.py --fps" in note
    with pytest.warns(UserWarning, match="2 of 3 real videos are unusual"):
        result = evaluate([real, real], folders)
    assert note in result["notes"]


def test_frames_have_no_rate_and_need_leave(folders, tmp_path):
    write_frames(tmp_path / "frames" / "a", range(6))
    write_frames(tmp_path / "frames" / "b", range(6))
    real = sources(folders, "real")[0]
    fake = ClipSource(tmp_path / "frames", real.protocol, progress=False)
    with pytest.raises(ValueError, match="no frame rate"):
        evaluate([real, fake], folders)
    (tmp_path / "frames" / "a" / "000003.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"000003.png: not a readable image"):
        [fake[i] for i in range(2)]


def test_lossy_frames_bring_a_warning(tmp_path):
    for name in "ab":
        write_frames(tmp_path / name, range(4), name="{:06d}.jpg")
    with pytest.warns(UserWarning, match=r"stored lossily .jpg."):
        ClipSource(tmp_path, ClipProtocol(frames=4), generated=True, progress=False)


def test_packed_clips_that_are_stored_lossily_bring_a_warning(folders, tmp_path):
    protocol = ClipProtocol(frames=4, start="first", num_clips=None)
    with pytest.warns(UserWarning, match=r"stored lossily .h264."):
        source = ClipSource(pack(tmp_path, [8, 8]), protocol, generated=True, progress=False)
    assert source.describe()["codecs"] == ["h264"]
    with pytest.warns(UserWarning, match="2 clips"):
        result = evaluate([source, source], folders)
    assert "lossy files (h264)" in result["notes"][-1]


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
def test_copies_among_generated_clips_are_told(folders, tmp_path):
    write_folder(tmp_path, [10, 70, 130], noise=60)
    shutil.copy(tmp_path / "70.mkv", tmp_path / "copy.mkv")
    real, _ = sources(folders, "fake")
    fake = ClipSource(tmp_path, real.protocol, progress=False)
    with pytest.warns(UserWarning, match=r"1 of 4 generated clips"):
        result = evaluate([real, fake], folders)
    assert len(result["notes"]) == 2
