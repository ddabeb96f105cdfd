"""The ablation: which runs start from what, what is measured together, what the tables say."""

import html
import json
from pathlib import Path

import pytest
import yaml

import scripts.ablate as ablate
from common.cli import parse
from common.files import read_options
from eval.experiments.claims import Claim
from eval.report.items import Column
from eval.results.experiment_tables import seed_table
from scripts import make_shards, train_classifier
from scripts import report as make_report
from scripts.ablate import Ablate
from scripts.report import MakeReport
from tests.builders.commands import ROOT
from vae import VAEConfig, VideoVAE

CLAIM = Claim(
    claim="D is even", row="ktc_gcconv_from_image", than="ktc_from_image",
    score="fast/ssim_margin", expected="lower",
)  # fmt: skip


class FakeStages:
    """In place of training and measuring: writes what the commands would leave, and remembers."""

    calls: list[tuple[str, dict]]
    records: dict[Path, dict]

    def __init__(self, **_):
        pass

    def run(self, record, script, options, *, config=None):
        FakeStages.calls.append((script, {**options, "config": config and config.name}))
        if FakeStages.records.setdefault(record, dict(options)) != options:
            raise ValueError(f"{record}: was made with other settings")  # as CommandStages does
        if script == "train_vae.py":
            folder = Path(options["train.folder"])
            vae = VideoVAE(VAEConfig(z_dim=4, dim=2, num_blocks=1))
            vae.save_pretrained(folder / "export")
            (folder / "log.jsonl").write_text('{"step": 1, "eval/ema/psnr": 20.5}\n')
        else:
            seed = int(options["out"].name.split("-")[1])
            names = [each.split("=")[0] for each in options["vae"]]
            metrics = {
                name: {
                    "psnr": 20 + i + seed,
                    "ssim": 0.5,
                    "ssim_by_position": {"positions": [0.5, 0.6], "margin": 0.1 - 0.01 * i},
                    "psnr_by_frame": [21.0, 22.0],
                }
                for i, name in enumerate([*names, "trilinear", "last_frames"])
            }
            options["out"].mkdir(parents=True)
            (options["out"] / "metrics.json").write_text(json.dumps({"metrics": metrics}))


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    FakeStages.calls, FakeStages.records = [], {}
    monkeypatch.setattr(ablate, "CommandStages", FakeStages)
    shards = tmp_path / "fast"
    shards.mkdir()
    (shards / "index.json").write_text("{}")
    data = {"folder": str(shards), "frames": 9, "height": 32, "width": 32}
    for name in ("image", "video"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"data": data}))
    return tmp_path


def config(files: Path, **options) -> Ablate:
    return Ablate(
        folder=files / "run", video=files / "video.yaml", image=files / "image.yaml", **options
    )


def starts() -> dict[str, str | None]:
    """The folder of every training, and what it started from, below the folder of the runs."""
    options = [given for script, given in FakeStages.calls if script == "train_vae.py"]
    return {
        "/".join(each["train.folder"].parts[-2:]): "/".join(each["init_from"].parts[-3:-1])
        if "init_from" in each
        else None
        for each in options
    }


def test_rows_share_an_image_vae_where_theirs_are_alike(files):
    rows = ("baseline", "baseline_gcconv", "ktc", "ktc_gcconv", "ivvae")
    ablate.run(config(files, architectures=("ivvae",), image_starts=rows, seeds=(0, 1)))
    found = starts()
    assert found["ivvae/video-1"] is None
    for row, image in zip(rows, ("baseline", "baseline", "ktc", "ktc", "ivvae"), strict=True):
        for seed in (0, 1):
            assert found[f"{row}_from_image/video-{seed}"] == f"images/{image}-{seed}"
    FakeStages.calls, FakeStages.records = [], {}
    ablate.run(config(files, image_starts=("ktc",), seeds=(0, 1), image_seed=7))
    assert starts()["ktc_from_image/video-1"] == "images/ktc-7"


def test_rows_go_on_from_the_weights_of_another_row(files):
    continued = {"od_vae_gcconv": "od_vae", "od_vae": "od_vae"}
    (files / "short.yaml").write_text((files / "video.yaml").read_text())
    options = {"continued": continued, "continued_video": files / "short.yaml"}
    ablate.run(config(files, architectures=("od_vae",), seeds=(3,), **options))
    assert [given["config"] for _, given in FakeStages.calls] == [
        "video.yaml", "short.yaml", "short.yaml",
    ]  # fmt: skip
    assert starts() == {
        "od_vae/video-3": None,
        "od_vae_gcconv_from_od_vae/video-3": "od_vae/video-3",
        "od_vae_from_od_vae/video-3": "od_vae/video-3",
    }


def test_rows_of_a_seed_are_measured_together_and_claims_judged(files, capsys):
    options = {"architectures": (), "image_starts": ("ktc", "ktc_gcconv"), "claims": (CLAIM,)}
    ablate.run(config(files, tests={"fast": files / "fast"}, **options))
    measured = [given for script, given in FakeStages.calls if script == "eval_reconstruction.py"]
    assert len(measured) == 3  # one for each seed
    assert [each.split("=")[0] for each in measured[0]["vae"]] == [
        "ktc_from_image", "ktc_gcconv_from_image",
    ]  # fmt: skip
    assert (measured[0]["frames"], measured[0]["height"]) == (9, 32)
    result = json.loads((files / "run" / "ablation.json").read_text())
    scores = result["rows"]["ktc_gcconv_from_image"]["scores"]
    assert scores["2"]["fast/psnr"] == 23
    assert scores["2"]["psnr"] == 20.5  # of the log
    text = (files / "run" / "ablation.md").read_text()
    assert "D is even: shown. fast/ssim_margin of ktc_gcconv_from_image less" in text
    assert "22.00 ± 1.00" in text
    assert "last_frames" not in text  # compresses nothing
    assert text in capsys.readouterr().out + "\n"
    page = files / "page.html"
    make_report.run(
        MakeReport(results=[f"digits={files / 'run' / 'ablation.json'}"], out=str(page))
    )
    for part in (result["claims"][0], "Held-out clips", "Test set fast"):
        assert part in html.unescape(page.read_text())


def test_a_mean_over_fewer_seeds_than_the_caption_says_is_not_shown():
    seeds = [{"a": 1.0, "b": 2.0}, {"a": 3.0}]
    columns = {name: Column(name=name, decimals=1) for name in "ab"}
    (row,) = seed_table("Scores", "row", columns, {"first": seeds}, "over 2 seeds").rows
    assert row == ["first", "2.0 ± 1.4", None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"claims": (CLAIM,)}, "no row ktc_gcconv_from_image; there are baseline, "),
        ({"continued": {"ktc": "od_vae"}}, "continued: od_vae is not one of"),
        ({"continued": {"kct": "ivvae"}}, "unknown architecture 'kct': use some of baseline"),
        ({"architectures": ()}, "of architectures or image_starts"),
    ],
)
def test_mistakes_are_refused(files, options, message):
    with pytest.raises(ValueError, match=message):
        config(files, **options)


@pytest.mark.parametrize("name", ["motion", "initialization", "odvae", "small"])
def test_the_experiments_on_digits_are_valid(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = parse(Ablate, ["--config", f"configs/digits/{name}.yaml"])
    assert found.claims
    assert all(isinstance(claim, Claim) for claim in found.claims)
    assert found.folder == Path("runs/digits") / name
    for test, data in found.tests.items():
        options = parse(
            make_shards.COMMANDS["digits"], ["--config", f"configs/digits/data/{test}.yaml"]
        )
        assert options.out == data


def test_the_classifier_and_the_page_of_digits_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    classifier = parse(
        train_classifier.TrainClassifier, ["--config", "configs/digits/classifier.yaml"]
    )
    assert classifier.test == "datasets/digits/reference"
    for name in ("score", "inception"):  # clips at the size that it was trained at
        options = read_options(f"configs/digits/chain/{name}.yaml")
        assert options["height"] == options["width"] == classifier.data.height == 64
    page = parse(MakeReport, ["--config", "configs/digits/report.yaml"])
    small = parse(Ablate, ["--config", "configs/digits/small.yaml"])
    measured = {str(small.folder / "tests" / f"{test}-0") for test in small.tests}
    assert {path.partition("=")[2] for path in page.results} == {
        *measured, str(small.folder / "ablation.json"),
    }  # fmt: skip
