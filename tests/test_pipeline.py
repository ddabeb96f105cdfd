"""The demo and every command of the user, tiny, for real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine.files import read_json
from scripts import demo
from tests.browser import check_videos_play, needs_browser, open_page
from tests.videos import write_barcode_video, write_demo_clips

ROOT = Path(__file__).parents[1]
SMALL = {"height": 16, "width": 16}
MODEL = {"z_dim": 4, "dim": 4, "channel_multipliers": [1, 1, 2, 2], "num_blocks": 1}
CHANGES = {
    "data": {"short_side": 16},
    "image_vae": {"train": {"steps": 2, "save_every": 2}, "data": SMALL, "model": MODEL},
    "video_vae": {"train": {"steps": 2, "save_every": 2}, "data": SMALL, "model": MODEL},
    "latents": {**SMALL, "clips_per_video": 1},
    "classifier": {"train": {"steps": 2, "save_every": 2}, "data": SMALL, "channels": 8},
    "latte": {
        "train": {"steps": 2, "save_every": 2},
        "model": {"hidden_size": 16, "depth": 2, "num_heads": 2},
        "preview": {"steps": 2},
    },
    "samples": {"num_clips": 9, "sampler": {"steps": 2}},
    "reconstruct": SMALL,
}


def merged(values, changes):
    return {
        key: merged(values.get(key, {}), change) if isinstance(change, dict) else change
        for key, change in {**values, **changes}.items()
    }


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """A finished demo with the configs of the CPU demo, cut down, on stand-in clips."""
    folder = tmp_path_factory.mktemp("demo")
    configs = folder / "configs"
    configs.mkdir()
    for file in (ROOT / "configs" / "demo" / "cpu").glob("*.yaml"):
        values = merged(yaml.safe_load(file.read_text()), CHANGES[file.stem])
        (configs / file.name).write_text(yaml.safe_dump(values))
    write_demo_clips(folder / "datasets" / "demo" / "clips")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(demo, "fetch_clips", lambda clips: None)
        demo.run(demo.Demo(configs=str(configs)))
    return folder


def test_the_demo_measures_what_it_promises(demo_run):
    metrics = read_json(demo_run / "runs" / "demo" / "metrics.json")
    assert set(metrics["scores"]) == {
        "held-out clips",
        "held-out clips through the VAE",
        "generated",
        "held-out clips with noise",
        "untrained generator",
    }
    counts = {row["clips"] for row in metrics["scores"].values()}
    assert len(counts) == 1
    assert set(metrics["reconstruction"]) == {"vae", "trilinear", "keyframes"}
    for values in metrics["reconstruction"].values():
        assert {"psnr", "ssim", "information_preservation", "ssim_by_position"} <= set(values)
        assert len(values["ssim_by_position"]["positions"]) == 4
    assert all(stage["seconds"] > 0 for stage in metrics["stages"].values())
    assert "fvd" not in metrics["scores"]["generated"]  # only fvd_demo: it is no FVD


def test_a_second_demo_skips_every_stage_and_a_changed_config_is_refused(demo_run, monkeypatch):
    monkeypatch.chdir(demo_run)
    monkeypatch.setattr(demo, "call", None)  # nothing may be started
    configs = demo_run / "configs"
    demo.run(demo.Demo(configs=str(configs)))
    changed = configs / "latte.yaml"
    before = changed.read_text()
    changed.write_text(before.replace("steps: 2", "steps: 3"))
    with pytest.raises(ValueError, match=r"latte.yaml: changed since"):
        demo.run(demo.Demo(configs=str(configs)))
    changed.write_text(before)


@needs_browser
def test_the_page_opens_without_errors_and_its_videos_play(demo_run):
    with open_page(demo_run / "runs" / "demo" / "report.html") as page:
        assert "measured generator" in page.title()
        assert check_videos_play(page) > 0


def command(*arguments, cwd) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / arguments[0]), *map(str, arguments[1:])],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_mistakes_of_the_user_are_one_line_and_leave_nothing(demo_run, tmp_path):
    text = tmp_path / "notes" / "readme.mp4"
    text.parent.mkdir()
    text.write_text("no video")
    run = demo_run / "runs" / "demo"
    vae = run / "video_vae" / "export"
    cases = {
        "no such folder": ("make_shards.py", "folder", "--root", "nowhere", "--out", "out"),
        "readme.mp4": (
            "make_shards.py",
            "folder",
            "--root",
            tmp_path,
            "--out",
            "out",
            "--workers",
            "0",
        ),
        "6 frames, but the VAE needs 1 + 4n": (
            *("cache_latents.py", "--vae", vae, "--out", "out"),
            *("--data", run / "shards" / "train"),
            *("--frames", "6", "--interval", "1", "--height", "16", "--width", "16"),
        ),
        "height 12": (
            *("cache_latents.py", "--vae", vae, "--out", "out"),
            *("--data", run / "shards" / "train"),
            *("--interval", "1", "--height", "12", "--width", "16"),
        ),
        "labels=(9,)": (
            *("sample.py", "--latte", run / "latte" / "export", "--vae", vae, "--out", "out"),
            *("--num_clips", "1", "--labels", "[9]"),
        ),
        "--speed": ("train_vae.py", "--speed", "fast"),
    }
    for message, arguments in cases.items():
        done = command(*arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: "), done.stderr
        assert message in last
        assert "Traceback" not in done.stderr
    left = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".tar", ".mkv")]
    assert not left


def test_samples_of_another_vae_are_refused(demo_run, tmp_path):
    from tests.test_vae import make

    make().float().save_pretrained(tmp_path / "vae")
    latte = demo_run / "runs" / "demo" / "latte" / "export"
    done = command(
        *("sample.py", "--latte", latte, "--vae", tmp_path / "vae"),
        *("--out", "out", "--num_clips", "1"),
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "not the VAE of" in done.stderr


def test_samples_do_not_depend_on_the_batch_and_go_on_where_they_stopped(demo_run, tmp_path):
    run = demo_run / "runs" / "demo"
    common = (
        *("sample.py", "--latte", run / "latte" / "export", "--vae", run / "video_vae" / "export"),
        *("--num_clips", "4", "--sampler.steps", "2", "--sampler.method", "ddim"),
    )
    for name, size in (("a", 1), ("b", 4)):
        done = command(*common, "--out", tmp_path / name, "--batch_size", size, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    missing = tmp_path / "b" / "clip-000002.mkv"
    missing.unlink()
    done = command(*common, "--out", tmp_path / "b", "--batch_size", "3", cwd=tmp_path)
    assert "3 of 4 clips are there" in done.stdout
    for i in range(4):
        pair = [(tmp_path / n / f"clip-00000{i}.mkv").read_bytes() for n in "ab"]
        assert pair[0] == pair[1]
    other = command(*common, "--out", tmp_path / "b", "--seed", "1", cwd=tmp_path)
    assert other.returncode == 2
    assert "seed was 0, now 1" in other.stderr


def test_a_folder_of_videos_is_packed_and_measured(demo_run, tmp_path):
    for i, name in enumerate(("a", "b", "c", "d")):
        path = tmp_path / "videos" / f"class{i % 2}" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_barcode_video(path, 20, 32, 48, shade=i * 40)
    done = command(
        *("make_shards.py", "folder", "--root", "videos", "--out", "shards"),
        *("--short_side", "16", "--workers", "0"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    classifier = demo_run / "runs" / "demo" / "classifier" / "export"
    done = command(
        *("eval_fvd.py", "--real", "shards", "--fake", "shards", "--classifier", classifier),
        *("--stride_real", "1", "--start_real", "first", "--out", "fvd.json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = read_json(tmp_path / "fvd.json")
    assert abs(result["value"]) < 1e-6
    assert result["name"] == "fvd4_16f_classifier"
