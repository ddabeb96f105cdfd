"""The reconstruction command, the figures and the page, for real on tiny VAEs and videos."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from common.files import read_json, write_json
from data.video.decode import read_frames
from data.video.encode import write_video
from eval.features.classifier import ClassifierConfig, ClipClassifier
from eval.metrics.reconstruction import psnr
from eval.report import plots
from tests.builders.browser import needs_browser, open_page
from tests.builders.commands import run_script
from tests.builders.videos import barcode_frame
from vae import ImageVAE, VAEConfig, VideoVAE

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos, two VAEs, a classifier, and a finished run of all of them."""
    root = tmp_path_factory.mktemp("reconstruction")
    for shade in (0, 80, 160):
        clip = np.stack([barcode_frame(i, SIDE, SIDE, shade) for i in range(9)])
        write_video(root / "videos" / f"{shade}.mkv", clip, 8, codec="ffv1")
    config = VAEConfig(z_dim=4, dim=4, channel_multipliers=(1, 1, 2, 2), num_blocks=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        VideoVAE(config).save_pretrained(root / "video_vae")
        ImageVAE(config.image()).save_pretrained(root / "image_vae")
        ClipClassifier(ClassifierConfig(num_classes=3, width=8)).save_pretrained(root / "tiny")
    code = run_script("eval_reconstruction.py", *arguments(root))
    assert code == 0
    return root


def arguments(root: Path, **changes: object) -> list[str]:
    options = {"data": root / "videos", "out": root / "out", "classifier": root / "tiny"}
    options |= {"frames": 5, "height": SIDE, "width": SIDE, "batch_size": 2, "save_clips": 3}
    options |= {"repeats": 1, "cost_frames": 5, "cost_height": SIDE, "cost_width": SIDE, **changes}
    vaes = [f"--vae=ours={root}/video_vae", "--vae", f"frames={root}/image_vae"]
    return [*vaes, *(f"--{name}={value}" for name, value in options.items())]


def test_every_method_is_measured_on_the_same_clips(folder):
    result = read_json(folder / "out" / "metrics.json")
    assert list(result["metrics"]) == ["ours", "frames", "trilinear", "last_frames"]
    for scores in result["metrics"].values():
        assert scores["videos"] == 3
        assert scores["rfvd"]["name"] == "rfvd3_5f_tiny"
    assert result["metrics"]["last_frames"]["ssim_by_position"]["positions"][3] == pytest.approx(1)
    described = result["methods"]["ours"]
    assert described["parameters"] > result["methods"]["frames"]["parameters"]
    assert described["cost"]["size"] == "5x32x32"
    assert described["cost"]["encode"] > 0
    assert described["cost"]["bfloat16"]["decode"] > 0
    assert len(described["sha256"]) == 64
    assert len(result["protocol"]["content"]) == 64
    assert any("LPIPS with vgg was not measured" in note for note in result["notes"])


def test_saved_clips_are_what_was_measured(folder):
    result = read_json(folder / "out" / "metrics.json")

    def video(method: str, name: str) -> torch.Tensor:
        frames = read_frames(folder / "out" / method / f"{name}.mkv", range(5))
        return torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1

    names = [clip["name"] for clip in result["clips"]]
    assert len(names) == 3
    values = [psnr(video("source", n), video("trilinear", n)).mean().item() for n in names]
    expected = result["metrics"]["trilinear"]["psnr"]
    assert np.mean(values) == pytest.approx(expected, abs=0.05)  # saved in 256 levels


def test_every_clip_has_its_own_scores(folder):
    result = read_json(folder / "out" / "metrics.json")
    rows = list(csv.DictReader((folder / "out" / "clips.csv").read_text().splitlines()))
    assert len(rows) == 3 * len(result["metrics"])
    for method, scores in result["metrics"].items():
        values = [float(row["psnr"]) for row in rows if row["method"] == method]
        assert np.mean(values) == pytest.approx(scores["psnr"])
    first = result["clips"][0]
    assert first["scores"]["ours"]["ssim"] == pytest.approx(float(rows[0]["ssim"]))
    assert rows[0]["clip"] == first["key"]


def test_tables_hold_measured_and_published_rows(folder):
    text = (folder / "out" / "tables.md").read_text()
    assert "| ours |" in text
    assert "*supplement, Table 6*" in text
    positions = (folder / "out" / "positions.csv").read_text().splitlines()
    assert positions[1].endswith("measured here")
    assert positions[-1].endswith('"supplement, Table 5"')
    cost = (folder / "out" / "cost.csv").read_text().splitlines()
    counts = 'method,"parameters, M","MACs at 17x512x512, T","FLOPs at 17x512x512, T",'
    assert cost[0].startswith(counts + '"encode at 5x32x32, fp32, s"')
    assert '"decode at 5x32x32, bf16, s"' in cost[0]
    assert "medians of 1 runs after 1 to warm up, for one 5x32x32 video on" in text
    assert "rfvd3_5f_tiny" in (folder / "out" / "quality.csv").read_text()
    assert r"\color{gray}" in (folder / "out" / "tables.tex").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 6}, "frames=6 must be 1 + group * n"),
        ({"height": 30}, "ours: height 30"),
        ({"lpips": "vgg"}, "no vgg16-397923af.pth found"),
        ({"lpips_alex": "alex.pth"}, "alex.pth: no such file"),
        ({"cost_height": 30}, "ours: height 30"),
    ],
)
def test_mistakes_are_refused_before_the_work(folder, tmp_path, changes, message, capsys):
    monkeypatched = {"out": tmp_path / "none", **changes}
    assert run_script("eval_reconstruction.py", *arguments(folder, **monkeypatched)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_names_must_differ(folder, capsys):
    twice = [f"--vae=ours={folder}/video_vae", *arguments(folder)]
    assert run_script("eval_reconstruction.py", *twice) == 2
    assert "'ours' is already used" in capsys.readouterr().err


FIGURES = {
    "comparison": ["--run={root}/out", "--methods=ours", "--methods=trilinear"],
    "caption": ["--vae=ours={root}/video_vae", "--data={root}/videos", "--text=HI"],
    "latents": ["--vae={root}/video_vae", "--data={root}/videos"],
    "unselected": ["--vae={root}/video_vae", "--data={root}/videos"],
    "positions": ["--run={root}/out"],
    "preservation": ["--run={root}/out"],
    "samples": ["--data={root}/out/source", "--frames=[0, 4]"],
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_twice(folder, tmp_path, name):
    options = [option.format(root=folder) for option in FIGURES[name]]
    if name in ("caption", "latents", "unselected"):
        options += [f"--height={SIDE}", f"--width={SIDE}"]
    assert run_script("figures.py", name, *options, f"--out={tmp_path}/figure") == 0
    assert (tmp_path / "figure.png").read_bytes()[1:4] == b"PNG"
    assert (tmp_path / "figure.pdf").read_bytes()[:4] == b"%PDF"


def test_figures_refuse_what_is_not_there(folder, tmp_path, capsys):
    out = f"--out={tmp_path}/figure"
    assert run_script("figures.py", "comparison", f"--run={folder}/out", "--clip=9", out) == 2
    assert "no such clip" in capsys.readouterr().err
    assert run_script("figures.py", "comparison", f"--run={folder}/out", "--frames=[7]", out) == 2
    assert "frames [7] must be in 0 to 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "key"), [("latents", "frame"), ("caption", "start"), ("samples", "clips")]
)
def test_null_where_a_figure_needs_a_value_is_refused_by_name(folder, tmp_path, capsys, name, key):
    options = [option.format(root=folder) for option in FIGURES[name]]
    (tmp_path / "null.yaml").write_text(f"{key}: null\n")
    options += [f"--out={tmp_path}/figure", f"--config={tmp_path}/null.yaml"]
    assert run_script("figures.py", name, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert key in line


def test_runs_of_different_clips_do_not_share_a_figure(folder, tmp_path, capsys):
    other = read_json(folder / "out" / "metrics.json")
    other["protocol"] |= {"stride": 2, "content": "0" * 64}
    write_json(tmp_path / "other" / "metrics.json", other)
    runs = [f"--run={folder}/out", f"--run={tmp_path}/other"]
    for name in ("positions", "preservation"):
        assert run_script("figures.py", name, *runs, f"--out={tmp_path}/figure") == 2
        assert "do not compare: stride was 1, now 2; content was" in capsys.readouterr().err


def test_figures_fit_a_printed_page_and_positions_show_the_imbalance():
    pictures = [np.zeros((16, 32, 3), np.uint8)] * 9
    for rows in (2, 40):
        figure = plots.picture_grid({f"row {i}": pictures for i in range(rows)}, ["frame"] * 9)
        assert (figure.get_size_inches() <= (7.001, 9.001)).all()
        assert len(figure.axes) == 9 * rows
    figure = plots.positions({"ours": [0.9, 0.8, 0.7]}, {"theirs": [0.1, 0.1, 0.4]})
    level, offset = ([line.get_ydata() for line in axis.lines] for axis in figure.axes)
    np.testing.assert_allclose(level, [[0.1, 0.1, 0.4], [0.9, 0.8, 0.7]])
    np.testing.assert_allclose(offset, [[-0.1, -0.1, 0.2], [0.1, 0, -0.1]], atol=1e-12)


def test_the_caption_appears_suddenly():
    clip = np.full((4, 64, 128, 3), 90, np.uint8)
    changed = plots.with_caption(clip, 2, "HELLO")
    np.testing.assert_array_equal(changed[:2], clip[:2])
    assert changed[2:].max() > 200
    np.testing.assert_array_equal(changed[2], changed[3])
    with pytest.raises(ValueError, match="start=4"):
        plots.with_caption(clip, 4, "HELLO")
    with pytest.raises(ValueError, match="too long for 16 pixels"):
        plots.with_caption(clip[:, :, :16], 1, "HELLO" * 9)


@needs_browser
def test_the_page_shows_tables_and_clips(folder, tmp_path):
    page = tmp_path / "page.html"
    assert run_script("report.py", f"--results=run={folder}/out", f"--out={page}") == 0
    with open_page(page) as opened:
        text = opened.inner_text("body")
    for part in ("Reconstruction: run", "last_frames", "supplement, Table 5", "Clip "):
        assert part in text


def test_the_page_refuses_what_it_does_not_know(folder, tmp_path, capsys):
    assert run_script("report.py", f"--results={folder}/videos", f"--out={tmp_path}/p.html") == 2
    assert "no metrics.json of eval_reconstruction" in capsys.readouterr().err
