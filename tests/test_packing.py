"""Packing as users start it: several processes, kills at any point, locks, full disks, hangs."""

import errno
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import av
import psutil
import pytest

import data.shards.pack_video
import data.shards.write
from data.importers import ImportResult
from data.importers.folders import Folder
from data.shards.index import ShardIndex
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from data.video.video_record import VideoRecord
from tests.builders.commands import SCRIPTS, run_script
from tests.builders.videos import write_barcode_video

CONFIG = ShardConfig(short_side=32, videos_per_shard=2)
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two classes of 6 videos, one of them too short, one broken."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(12):
        frames = 9 if number == 4 else 20 + number
        path = root / f"class{number % 2}" / f"{number:02d}.mp4"
        write_barcode_video(path, frames, 48, 64, shade=number * 20)
    (root / "class1" / "07.mp4").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def straight(videos, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("straight")
    pack(videos, out)
    return contents(out)


def pack(videos: Path, out: Path, **options):
    found = Folder(root=videos).scan()
    options = {"on_error": "skip", **options}
    return write_shards(found, out, CONFIG, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_processes_that_see_other_videos_are_refused(videos, tmp_path):
    pack(videos, tmp_path)
    found = Folder(root=videos).scan()

    class Second:  # as the other of two processes sees it
        process_index, num_processes = 1, 2

        def wait_for_everyone(self) -> None:
            pass

    with pytest.raises(ValueError, match=r"videos was 12 videos .*, now 11 videos"):
        write_shards(
            replace(found, records=found.records[1:]), tmp_path, CONFIG, accelerator=Second()
        )


def test_a_full_disk_names_the_file_and_the_next_run_goes_on(
    videos, straight, tmp_path, monkeypatch
):
    add = data.shards.write.TarWriter.add

    def full(writer, name, content):
        if name == "class1__01.mp4":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return add(writer, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(data.shards.write.TarWriter, "add", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            pack(videos, tmp_path)
        assert caught.value.filename.endswith(".tar")
    assert not list(tmp_path.glob(".*.tmp*"))
    with monkeypatch.context() as patch:  # as PyAV says it, while encoding to a temporary file
        patch.setattr(
            data.shards.write, "pack_record", lambda *_, **__: av.error.err_check(-errno.ENOSPC)
        )
        with pytest.raises(OSError, match="No space left on device") as caught:
            pack(videos, tmp_path)
        assert caught.value.filename
    pack(videos, tmp_path)
    assert contents(tmp_path) == straight


def test_a_slow_video_is_bad(videos, tmp_path):
    report = pack(videos, tmp_path, time_limit=1e9)
    assert len(report.failures) == 1
    with pytest.raises(ValueError, match=r"12 videos .*limit of 1e-09 s"):
        pack(videos, tmp_path / "slow", time_limit=1e-9)


def misbehave(record: VideoRecord, **_):
    if record.id == "stuck":
        threading.Event().wait()
    if record.id == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return data.shards.pack_video.Packed(b"video", "mp4", 25, 64, 96, 25.0)


def test_a_video_that_hangs_or_kills_its_process_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(data.shards.write, "GRACE", 0.0)
    monkeypatch.setattr(data.shards.write, "pack_record", misbehave)
    names = ("a", "stuck", "b", "crash", "c")
    records = [VideoRecord(name, tmp_path / f"{name}.mp4", None) for name in names]
    options = {"on_error": "skip", "time_limit": 2.0, "workers": 2}
    report = write_shards(ImportResult(records), tmp_path / "out", CONFIG, **options)
    assert report.written == 3
    stuck, crash = report.failures
    assert (stuck.id, stuck.cause) == ("stuck", "time limit")
    assert "stuck.mp4: no frame for 2 s" in stuck.reason
    assert (crash.id, crash.cause) == ("crash", "crash")
    assert "crash.mp4: a worker process died of it (exit status -11)" in crash.reason
    # An error that only fewer workers, or a longer limit, may mend is kept until there are such
    assert write_shards(ImportResult(records), tmp_path / "out", CONFIG, **options) == report
    with pytest.raises(ValueError, match=r"crash.mp4: a worker process died"):
        write_shards(ImportResult(records[3:]), tmp_path / "stop", CONFIG, workers=1)


def test_workers_do_not_outlive_the_process_that_they_work_for(videos, tmp_path):
    script = str(SCRIPTS / "make_shards.py")
    options = ["folder", f"--root={videos}", f"--out={tmp_path / 'out'}", "--workers=2"]
    with subprocess.Popen(
        [sys.executable, script, *options, "--on_error=skip"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        family = []
        while len(family) < 4:  # two workers, the server that forks them, and its tracker
            assert process.poll() is None
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert psutil.wait_procs(family, timeout=60)[1] == []


def outcome(root: Path, out: Path, **options) -> tuple[int, list[str]]:
    report = pack(root, out, **options)
    return report.written, [failure.id for failure in report.failures]


def test_whatever_a_file_raises_is_its_failure(videos, tmp_path):
    root = tmp_path / "odd"
    write_barcode_video(root / "x" / "good.mp4", 20)
    write_barcode_video(root / "x" / "line.mkv", 20, 1, 64, encoder="ffv1", pixels="bgr0")
    # a mean rate below 1/2002 per second
    slow = [number * 3_000_000 for number in range(20)]
    write_barcode_video(root / "x" / "slow.mkv", 20, encoder="mpeg4", pts=slow)
    write_barcode_video(root / "x" / "wide.mkv", 17, 16, 17_000, encoder="ffv1", pixels="bgr0")
    report = pack(root, tmp_path / "here")
    failed = report.failures
    assert report.written + len(failed) == 4
    named = {failure.id: failure.reason for failure in failed}
    assert {"x__line", "x__wide"} <= named.keys()
    assert "line.mkv: cannot be packed (frames of 1x64 pixels" in named["x__line"]
    assert all(f"{id[3:]}.mkv: " in reason for id, reason in named.items())
    assert contents(tmp_path / "here") == (
        pack(root, tmp_path / "pool", workers=1) and contents(tmp_path / "pool")
    )
    with pytest.raises(ValueError, match=r"line.mkv: .*Fix or remove"):
        pack(root, tmp_path / "stop", on_error="stop")


@pytest.mark.parametrize("change", ["mended", "removed"])
def test_a_run_goes_on_after_the_file_that_stopped_it_was_changed(tmp_path, change):
    root, out = tmp_path / "videos", tmp_path / "out"
    for number in range(6):
        write_barcode_video(root / "x" / f"{number}.mp4", 20 + number, 48, 64, shade=40 * number)
    whole = (root / "x" / "3.mp4").read_bytes()
    (root / "x" / "3.mp4").write_bytes(whole[:-500])
    with pytest.raises(ValueError, match=r"3.mp4: .*Fix or remove"):
        pack(root, out, on_error="stop")
    first = (out / "shard-000000.tar").stat().st_mtime_ns
    if change == "mended":
        (root / "x" / "3.mp4").write_bytes(whole)
    else:
        (root / "x" / "3.mp4").unlink()
    assert outcome(root, out, on_error="stop") == (6 if change == "mended" else 5, [])
    assert (out / "shard-000000.tar").stat().st_mtime_ns == first
    pack(root, tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")
    # A complete folder is not given to other videos
    (root / "x" / "5.mp4").unlink()
    with pytest.raises(ValueError, match=r"videos was \d videos \(.*now \d"):
        pack(root, out)


def test_a_file_removed_before_shards_of_other_processes_leaves_nothing_behind(videos, tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    for number in range(5):
        write_barcode_video(root / "x" / f"{number}.mp4", 20 + number, 48, 64)
    pack(root, out)
    (out / "index.json").unlink()  # as if the process with the first part had been stopped
    (out / "shard-000000.json").unlink()
    (root / "x" / "0.mp4").unlink()
    assert outcome(root, out) == (4, [])
    pack(root, tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")


def test_failures_are_tried_again_when_their_cause_may_be_gone(videos, tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    for number in range(4):
        write_barcode_video(root / "x" / f"{number}.mp4", 20 + number, 48, 64)
    whole = (root / "x" / "0.mp4").read_bytes()
    (root / "x" / "0.mp4").write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of 4 videos could be packed"):
        pack(root, out, time_limit=1e-9)
    again = pack(root, out)  # a larger limit
    assert [failure.id for failure in again.failures] == ["x__0"]
    kept = (out / "shard-000001.tar").stat().st_mtime_ns
    assert pack(root, out, time_limit=1e9) == again  # not what it failed of
    (root / "x" / "0.mp4").write_bytes(whole)
    assert outcome(root, out) == (4, [])
    assert (out / "shard-000001.tar").stat().st_mtime_ns == kept
    pack(root, tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")


def test_the_script_reports_refuses_and_continues(videos, tmp_path, capsys):
    out = tmp_path / "out"
    usual = ("folder", "--root", videos, "--out", out, "--short_side", 32, "--workers", 0)
    assert run_script("make_shards.py", *usual, "--dry_run") == 0
    said = capsys.readouterr().out
    assert "12 videos, 2 classes" in said
    assert "hours, 1 too short, 1 failed" in said
    assert "04.mp4: 9 frames" in said
    assert "07.mp4: cannot be decoded" in said
    assert not out.exists()
    assert run_script("make_shards.py", *usual) == 2
    assert "07.mp4: cannot be decoded" in capsys.readouterr().err
    assert run_script("make_shards.py", *usual, "--on_error", "skip") == 0
    said = capsys.readouterr().out
    assert "10 of 12 videos written" in said
    assert "1 too short, 1 failed, 0 missing, 0 unlabeled" in said
    assert "  class0 5\n  class1 5\n" in said
    assert run_script("make_shards.py", *usual, "--on_error", "skip", "--crf", 9) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith(
        f"error: {out}: was made with other settings or inputs: crf was 12, now 9"
    )
    assert len(ShardIndex.load(out)) == 10


def test_the_script_explains_wrong_options(videos, tmp_path, capsys):
    common = ("--root", videos, "--out", tmp_path / "out")
    for arguments, message in {
        ("folder", *common, "--split_index", 2): "unrecognized arguments: --split_index 2",
        ("ucf101", *common, "--holdout", 0.1): "unrecognized arguments: --holdout 0.1",
        ("ucf101", *common, "--split_index", 4): "split_index",
        ("ucf102", *common): "invalid choice: 'ucf102' (choose from 'ucf101'",
        ("frames", *common, "--fps", -1): "fps=-1.0 must be above 0",
        ("frames", *common, "--crf", 99): "crf=99 must be at most 51",
        ("folder", *common, "--time_limit", 0): "time_limit=0.0 must be above 0",
        ("ucf101", *common): "expected a folder with one folder for each class",
    }.items():
        assert run_script("make_shards.py", *arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_script_takes_a_config_file(videos, tmp_path, capsys):
    config = tmp_path / "set.yaml"
    config.write_text(f"root: {videos}\nout: {tmp_path / 'out'}\nworkers: 0\nlabels: none\n")
    assert run_script("make_shards.py", "folder", "--config", config, "--dry_run") == 0
    assert "12 videos, 0 classes" in capsys.readouterr().out
    config.write_text(config.read_text() + "annotations: a.csv\n")
    assert run_script("make_shards.py", "folder", "--config", config) == 2
    assert "annotations" in capsys.readouterr().err
    assert run_script("make_shards.py", "kinetics400", "--help") == 0
    assert "Files that the annotations do not name" in capsys.readouterr().out


def test_torchrun_shares_the_work_and_reports_once(videos, straight, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = str(SCRIPTS / "make_shards.py")
    options = ["folder", f"--root={videos}", f"--out={tmp_path / 'out'}", "--short_side=32"]
    more = ["--videos_per_shard=2", "--on_error=skip", "--workers=0"]
    done = subprocess.run(
        [sys.executable, *launch, script, *options, *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10 of 12 videos written") == 1
    assert contents(tmp_path / "out") == straight
