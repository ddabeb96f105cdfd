"""The demo's page: what was reconstructed and generated, how well, at what cost."""

import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import read_json
from data.shards.index import ShardIndex
from data.video.decode import read_frames
from data.video.probe import probe
from engine.run_folder import read_log
from eval.protocols.published import POSITIONS, published_rows
from eval.report.page import (
    Column,
    Comparison,
    Curve,
    Fact,
    Gallery,
    Report,
    Section,
    Table,
    build_report,
)

METHODS = {
    "vae": "IV-VAE, this run",
    "trilinear": "trilinear down- and upsampling by 4x8x8",
    "keyframes": "last frame of each group repeated",
}
COMPARISONS = 4
GALLERY_CLIPS = 4


def build_demo_report(folder: Path, configs: Path) -> None:
    """Write report.html from a finished demo run; `configs` is only named on the page."""
    metrics = read_json(folder / "metrics.json")
    report = Report(
        title="From raw videos to a measured generator",
        summary=_summary(metrics),
        facts=_facts(metrics),
        sections=[
            _reconstruction(folder, metrics),
            _generation(folder, metrics),
            _training(folder),
            _cost(metrics),
        ],
        provenance={
            "command": "make demo",
            "configs": configs,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
            + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"),
            "Python, torch": f"{platform.python_version()}, {importlib.metadata.version('torch')}",
            "VAE weights": _reconstructions(folder)["methods"]["vae"]["sha256"],
        },
    )
    build_report(report, folder / "report.html")


def _summary(metrics: dict[str, Any]) -> list[str]:
    protocol = metrics["protocol"]
    return [
        f"A small IV-VAE and a small class-conditional Latte, trained on {protocol['classes']} "
        "shots of a few seconds each and measured on later parts of the same shots. Every stage is "
        "the command that a real run uses.",
        "The data are far too few for numbers that mean anything beyond this page: fvd_demo and "
        "is_demo are computed with a small classifier trained on these very shots. They are not "
        "FVD and IS, and only rows of one table compare. The generator has seen a few seconds of "
        "each shot: what it shows is at best a memory of them.",
    ]


def _facts(metrics: dict[str, Any]) -> list[Fact]:
    vae, trilinear = (metrics["reconstruction"][name] for name in ("vae", "trilinear"))
    generated, untrained = (
        metrics["scores"][name] for name in ("generated", "untrained generator")
    )
    seconds = sum(stage["seconds"] for stage in metrics["stages"].values())
    return [
        Fact(
            label="PSNR, held out",
            value=round(vae["psnr"], 2),
            unit="dB",
            note=f"trilinear {trilinear['psnr']:.2f} dB",
        ),
        Fact(
            label="SSIM, held out",
            value=round(vae["ssim"], 4),
            note=f"trilinear {trilinear['ssim']:.4f}",
        ),
        Fact(
            label="fvd_demo, generated",
            value=round(generated["fvd_demo"], 2),
            note=f"untrained {untrained['fvd_demo']:.2f}; lower is better",
        ),
        Fact(
            label="Class recognised",
            value=round(100 * generated["recognised"]),
            unit="%",
            note=f"chance {100 / metrics['protocol']['classes']:.0f} %",
        ),
        Fact(label="All stages", value=round(seconds / 60, 1), unit="min"),
    ]


def _reconstruction(folder: Path, metrics: dict[str, Any]) -> Section:
    results = {METHODS[name]: values for name, values in metrics["reconstruction"].items()}
    clips = next(iter(results.values()))["videos"]
    quality = Table(
        title="Reconstruction of held-out clips",
        caption=f"{clips} clips of 17 frames that no stage was trained on. Information "
        "preservation is Eq. 2 of the supplement, over [0, 1].",
        columns=[
            "method",
            Column(name="PSNR", unit="dB", better="high", decimals=2),
            Column(name="SSIM", better="high", decimals=4),
            Column(name="information preserved", better="high", decimals=4),
        ],
        rows=[
            [name, v["psnr"], v["ssim"], v["information_preservation"]["[0,1]"]]
            for name, v in results.items()
        ],
        reference_rows=published_rows(["psnr", "ssim", ""], least=2),
        unranked=[METHODS["keyframes"]],
        notes=[
            "The last row compresses nothing in space. An exact frame counts as 100 dB in its mean."
        ],
    )
    positions = Table(
        title="SSIM by position in the frame group",
        caption="The first frame left out, frames p, p + 4, ... averaged (supplement 1.2). The "
        "margin is the largest difference between positions.",
        columns=[
            "method",
            *(Column(name=f"frame {p}", decimals=4) for p in range(1, 5)),
            Column(name="margin", better="low", decimals=4),
        ],
        rows=[
            [name, *v["ssim_by_position"]["positions"], v["ssim_by_position"]["margin"]]
            for name, v in results.items()
        ],
        reference_rows=published_rows(POSITIONS),
        unranked=[METHODS["keyframes"]],
    )
    index = ShardIndex.load(folder / "shards" / "test")
    class_of = {sample.key: index.class_names[sample.label or 0] for sample in index.samples}
    saved = _reconstructions(folder)["clips"]
    by_class = {class_of[clip["key"]]: clip["name"] for clip in saved}
    chosen = list(by_class.items())
    step = max(1, len(chosen) // COMPARISONS)
    return Section(
        title="Reconstruction",
        items=[
            quality,
            positions,
            *(_comparison(folder, *c) for c in chosen[::step][:COMPARISONS]),
        ],
    )


def _reconstructions(folder: Path) -> dict[str, Any]:
    return read_json(folder / "reconstruction" / "metrics.json")


def _comparison(folder: Path, class_name: str, clip: str) -> Comparison:
    def path(kind: str) -> Path:
        return folder / "reconstruction" / kind / f"{clip}.mkv"

    names = {"source": "source", "vae": "IV-VAE", "trilinear": "trilinear"}
    return Comparison(
        title=f"Held-out clip: {class_name}",
        clips={shown: _frames(path(kind)) for kind, shown in names.items()},
        fps=8,
        error_of=["IV-VAE", "trilinear"],
    )


def _generation(folder: Path, metrics: dict[str, Any]) -> Section:
    protocol, scores = metrics["protocol"], metrics["scores"]
    clips = next(iter(scores.values()))["clips"]
    accuracy = protocol["classifier"]["accuracy"]
    table = Table(
        title="Generated clips beside real and untrained ones",
        caption=f"{clips} clips of {protocol['frames']} frames in every row, against "
        f"{protocol['reference_clips']} training clips. The classifier recognises "
        f"{100 * accuracy:.0f} % of held-out clips.",
        columns=[
            "clips",
            Column(name="fvd_demo", better="low", decimals=2),
            Column(name="is_demo", better="high", decimals=2),
            Column(name="class recognised", unit="%", better="high", decimals=0),
        ],
        rows=[
            [name, row["fvd_demo"], row["is_demo"], 100 * row["recognised"]]
            for name, row in scores.items()
        ],
        notes=[f"is_demo is at most the number of classes, {protocol['classes']}."],
    )
    galleries = [
        Gallery(title=title, clips=_by_class(folder / name), fps=8)
        for title, name in (
            ("Generated, by class", "samples"),
            ("The same noise without training", "samples_untrained"),
        )
    ]
    return Section(title="Generation", items=[table, *galleries])


def _by_class(folder: Path) -> dict[str, list[np.ndarray]]:
    groups: dict[str, list[np.ndarray]] = {}
    for clip in read_json(folder / "samples.json")["clips"]:
        group = groups.setdefault(clip["class_name"], [])
        if len(group) < GALLERY_CLIPS:
            group.append(_frames(folder / clip["file"]))
    return groups


def _training(folder: Path) -> Section:
    def curve(title: str, label: str, runs: dict[str, tuple[str, str]], log_y: bool) -> Curve:
        series = {}
        for shown, (run, value) in runs.items():
            lines = read_log(folder / run)
            series[shown] = ([x["step"] for x in lines], [x[value] for x in lines])
        return Curve(title=title, x_label="step", y_label=label, series=series, log_y=log_y)

    vae = {"image VAE": ("image_vae", "mae"), "video VAE": ("video_vae", "mae")}
    latte = {"noise (MSE)": ("latte", "mse"), "MSE + variational bound": ("latte", "loss")}
    return Section(
        title="Training",
        items=[
            curve("Reconstruction error of the VAEs", "MAE, pixels in [-1, 1]", vae, log_y=True),
            curve("Diffusion loss of Latte", "loss", latte, log_y=True),
        ],
    )


def _cost(metrics: dict[str, Any]) -> Section:
    table = Table(
        title="Time and memory of the stages",
        columns=[
            "stage",
            Column(name="time", unit="s", decimals=0),
            Column(name="peak memory", unit="GB", decimals=2),
        ],
        rows=[
            [name, stage["seconds"], stage["memory_gb"]]
            for name, stage in metrics["stages"].items()
        ],
        notes=["Memory is that of the process; GPU memory is not included."],
    )
    return Section(title="Cost", items=[table])


def _frames(path: Path) -> np.ndarray:
    return read_frames(path, list(range(probe(path).frames)))
