"""The demo and every command of the user, tiny, for real."""

import html
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from common import stages
from common.files import read_json
from common.output_folder import lock_folder
from scripts import demo
from tests.builders.browser import check_videos_play, needs_browser, open_page
from tests.builders.command_cases import run_until
from tests.builders.commands import ROOT, SCRIPTS, run_script
from tests.builders.processes import begin
from tests.builders.tiny_vae import make
from tests.builders.videos import write_barcode_video, write_demo_clips

SMALL = {"height": 16, "width": 16}
MODEL = {"z_dim": 4, "dim": 4, "channel_multipliers": [1, 1, 2], "num_blocks": 1}
LATTE = {
    "train": {"steps": 2, "save_every": 2, "log_every": 1},
    "model": {"hidden_size": 16, "depth": 2, "num_heads": 2},
    "preview_sampler": {"steps": 2},
}
SAMPLES = {"num_clips": 9, "sampler": {"steps": 2}}
CHANGES = {
    "data": {"short_side": 16},
    "image_vae": {
        "train": {"steps": 2, "save_every": 2, "log_every": 1},
        "data": SMALL,
        "model": MODEL,
    },
    "video_vae": {
        "train": {"steps": 2, "save_every": 2, "log_every": 1},
        "data": SMALL,
        "model": MODEL,
    },
    "latents": {"data": SMALL, "clips_per_video": 1},
    "classifier": {
        "train": {"steps": 2, "save_every": 2, "log_every": 1},
        "data": SMALL,
        "channels": 8,
    },
    "latte": LATTE,
    "latte_ddpm": LATTE,
    "samples": SAMPLES,
    "samples_ddpm": SAMPLES,
    "reconstruct": SMALL,
}
IN_NEW_PROCESSES = ("image_vae", "latents")
"""Stages that run as users' do, the first in two processes; the others run in this process, which
has torch loaded already."""


def merged(values, changes):
    return {
        key: merged(values.get(key, {}), change) if isinstance(change, dict) else change
        for key, change in {**values, **changes}.items()
    }


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """No test replaces the stand-ins by the demo's own clips."""
    monkeypatch.setattr(demo, "fetch_clips", lambda clips: None)


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

    run_demo(folder)
    return folder


def run_demo(folder, **options):
    """Run the demo in `folder`, with the configs there."""
    in_new_process = stages.call

    def call(command):
        script = next(i for i, part in enumerate(command) if part.endswith(".py"))
        if Path(command[script + 2]).stem in IN_NEW_PROCESSES:
            return in_new_process(command)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few clips
            assert run_script(Path(command[script]).name, *command[script + 1 :]) == 0
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(demo, "fetch_clips", lambda clips: None)
        patch.setattr(stages, "call", call)
        patch.setattr(demo, "usable_cpus", lambda: 2)  # so training takes two processes
        demo.run(demo.Demo(configs=str(folder / "configs"), **options))


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
    assert set(metrics["reconstruction"]) == {"vae", "trilinear", "last_frames"}
    for values in metrics["reconstruction"].values():
        assert {"psnr", "ssim", "information_preservation", "ssim_by_position"} <= set(values)
        assert len(values["ssim_by_position"]["positions"]) == 4
    assert all(stage["seconds"] > 0 for stage in metrics["stages"].values())
    assert {"data", "latte", "untrained", "generated-fvd"} <= set(metrics["stages"])
    assert len(metrics["recognized_by_class"]) == 9
    nearest = metrics["memorization"]["nearest"]
    assert len(nearest["generated"]["pairs"]) == 9
    assert nearest["held_out"]["median_gray_levels"] > 0
    assert "fvd" not in metrics["scores"]["generated"]  # only fvd_demo: it is no FVD


def test_a_second_demo_skips_every_stage_and_a_changed_config_is_refused(demo_run, monkeypatch):
    monkeypatch.chdir(demo_run)
    monkeypatch.setattr(stages, "call", None)  # nothing may be started
    configs = demo_run / "configs"
    demo.run(demo.Demo(configs=str(configs)))
    changed = configs / "latte.yaml"
    before = changed.read_text()
    changed.write_text(before.replace("steps: 2", "steps: 3"))
    with pytest.raises(ValueError, match=r"latte.json: .*latte.yaml was"):
        demo.run(demo.Demo(configs=str(configs)))
    changed.write_text(before)


def test_a_demo_whose_weights_were_trained_anew_keeps_no_samples_of_the_old(
    demo_run, tmp_path, monkeypatch
):
    shutil.copytree(demo_run, tmp_path / "demo")
    monkeypatch.chdir(tmp_path / "demo")
    run = Path("runs/demo")
    vae = run / "video_vae" / "export" / "model.safetensors"
    vae.write_bytes((run / "image_vae" / "export" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=rf"stages/latents.json: .*{vae} was"):
        demo.run(demo.Demo(configs="configs"))


def test_the_page_begins_with_pictures_and_shows_what_is_memorized(demo_run):
    page = (demo_run / "runs" / "demo" / "report.html").read_text()
    order = ["Real and generated clips", "Classes recognized", "Memorized?", "Time and memory"]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert page.index("<video") < page.index("Classes recognized")
    assert "nearest by pixels" in page


def test_the_papers_diffusion_is_an_option_beside_the_flow(demo_run, tmp_path):
    shutil.copytree(demo_run, tmp_path / "demo")
    run = tmp_path / "demo" / "runs" / "demo"
    before = (run / "report.html").read_bytes()
    run_demo(tmp_path / "demo", diffusion="ddpm")
    sampled = read_json(run / "samples_ddpm" / "identity.json")
    assert "ddim" in str(sampled)
    assert "the paper's diffusion" in html.unescape((run / "report_ddpm.html").read_text())
    assert (run / "report.html").read_bytes() == before
    vae = run / "stages" / "video_vae.json"
    assert vae.read_bytes() == (demo_run / vae.relative_to(tmp_path / "demo")).read_bytes()
    run_demo(tmp_path / "demo")  # both are whole
    assert (run / "report.html").read_bytes() == before


def test_a_killed_demo_goes_on_and_finds_what_a_straight_one_does(demo_run, tmp_path):
    for part in ("configs", "datasets"):
        shutil.copytree(demo_run / part, tmp_path / part)
    for number, whole in ((20, False), (40, True)):  # files, of which the first demo writes 5
        process = begin(run_until, number, whole, run_demo, tmp_path)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "runs" / "demo" / "metrics.json").exists()
    run_demo(tmp_path)
    found, straight = (
        read_json(folder / "runs" / "demo" / "metrics.json") for folder in (tmp_path, demo_run)
    )
    assert found.pop("stages").keys() == straight.pop("stages").keys()
    assert found == straight


@needs_browser
def test_the_page_opens_without_errors_and_its_videos_play(demo_run):
    with open_page(demo_run / "runs" / "demo" / "report.html") as page:
        assert "measured generator" in page.title()
        assert check_videos_play(page) > 0


def in_new_process(*arguments, cwd) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does."""
    return subprocess.run(
        [sys.executable, str(SCRIPTS / arguments[0]), *map(str, arguments[1:])],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def check_complaint(output: str, message: str) -> None:
    """The last line says what is wrong, and no traceback stands before it."""
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: "), output
    assert message in last
    assert "Traceback" not in output


def test_mistakes_of_the_user_are_one_line_and_leave_nothing(demo_run, tmp_path, capsys):
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
            *("--data.folder", run / "shards" / "train"),
            *("--data.frames", "6", "--data.height", "16", "--data.width", "16"),
        ),
        "height 10": (
            *("cache_latents.py", "--vae", vae, "--out", "out"),
            *("--data.folder", run / "shards" / "train"),
            *("--data.height", "10", "--data.width", "16"),
        ),
        "labels=(9,)": (
            *("sample.py", "--latte", run / "latte" / "export", "--vae", vae, "--out", "out"),
            *("--num_clips", "1", "--labels", "[9]", "--sampler.method", "heun"),
        ),
        "a flow": (
            *("sample.py", "--latte", run / "latte" / "export", "--vae", vae, "--out", "out"),
            *("--num_clips", "1", "--sampler.method", "ddpm"),
        ),
        "--speed": ("train_vae.py", "--speed", "fast"),
    }
    for message, arguments in cases.items():
        assert run_script(*arguments, cwd=tmp_path) == 2
        check_complaint(capsys.readouterr().err, message)
    message, arguments = next(iter(cases.items()))
    done = in_new_process(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    check_complaint(done.stderr, message)
    left = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".tar", ".mkv")]
    assert not left


def test_samples_of_another_vae_are_refused(demo_run, tmp_path, capsys):
    make().float().save_pretrained(tmp_path / "vae")
    latte = demo_run / "runs" / "demo" / "latte" / "export"
    models = ("--latte", latte, "--vae", tmp_path / "vae", "--sampler.method", "heun")
    assert run_script("sample.py", *models, "--out", tmp_path / "out", "--num_clips", 1) == 2
    check_complaint(capsys.readouterr().err, f"{tmp_path}/vae: not the encoder of")


def test_samples_do_not_depend_on_the_batch_and_go_on_where_they_stopped(
    demo_run, tmp_path, capsys
):
    run = demo_run / "runs" / "demo"
    common = (
        *("sample.py", "--latte", run / "latte" / "export", "--vae", run / "video_vae" / "export"),
        *("--num_clips", "4", "--sampler.steps", "2", "--sampler.method", "heun"),
    )
    for name, size in (("a", 1), ("b", 4)):
        assert run_script(*common, "--out", tmp_path / name, "--batch_size", size) == 0
    (tmp_path / "b" / "clip-000002.mkv").unlink()
    capsys.readouterr()
    assert run_script(*common, "--out", tmp_path / "b", "--batch_size", 3) == 0
    assert "3 of 4 clips are there" in capsys.readouterr().out
    for i in range(4):
        pair = [(tmp_path / n / f"clip-00000{i}.mkv").read_bytes() for n in "ab"]
        assert pair[0] == pair[1]
    with lock_folder(tmp_path / "b"):
        assert run_script(*common, "--out", tmp_path / "b") == 2
    check_complaint(capsys.readouterr().err, "is writing there")
    assert run_script(*common, "--out", tmp_path / "b", "--seed", 1) == 2
    check_complaint(capsys.readouterr().err, "seed was 0, now 1")


@pytest.mark.filterwarnings("always:.*distance is biased")
@pytest.mark.filterwarnings("always:.*stored lossily")
def test_a_folder_of_videos_is_packed_and_measured(demo_run, tmp_path, caplog):
    for i, name in enumerate(("a", "b", "c", "d")):
        path = tmp_path / "videos" / f"class{i % 2}" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_barcode_video(path, 20, 32, 48, shade=i * 40)
    packing = ("--short_side", 16, "--workers", 0)
    paths = ("--root", "videos", "--out", "shards")
    assert run_script("make_shards.py", "folder", *paths, *packing, cwd=tmp_path) == 0
    classifier = demo_run / "runs" / "demo" / "classifier" / "export"
    clips = ("--real", "shards", "--fake", "shards", "--stride_real", 1, "--start_real", "first")
    extra = ("--classifier", classifier, "--out", "fvd.json")
    assert run_script("eval_fvd.py", *clips, *extra, cwd=tmp_path) == 0
    assert "distance is biased" in caplog.text
    assert "stored lossily (h264)" in caplog.text
    result = read_json(tmp_path / "fvd.json")
    assert abs(result["value"]) < 1e-6
    assert result["name"] == "fvd4_16f_classifier"
