"""One self-contained page from reconstruction runs, FVD and IS results, and training runs."""

import datetime
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.cli import main
from common.config import Config, differences
from common.files import read_json
from data.video.decode import read_frames
from data.video.probe import probe
from engine.run_folder import read_log
from eval.protocols.published import published_rows
from eval.report.page import Column, Comparison, Curve, Item, Report, Section, Table, build_report
from eval.report.reconstruction_tables import reconstruction_tables

CLIPS = 8  # of a reconstruction run that are shown


@dataclass(frozen=True, kw_only=True)
class MakeReport(Config):
    """Put results side by side on one web page that needs no network and no other file."""

    results: list[str]
    """One flag each: a folder of eval_reconstruction, a JSON file of eval_fvd or eval_is, or the
    folder of a training run. `label=...` before it names it."""
    out: str
    """The page, .html."""
    title: str = "Results"
    """Its title."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.results:
            raise ValueError("nothing to report: give --results")


def run(config: MakeReport) -> None:
    """Read everything, then write the page."""
    named = [_named(given) for given in config.results]
    if len({label for label, _ in named}) < len(named):
        raise ValueError("two results have one name: give them names, as in label=path")
    reconstructions, scores, logs = {}, {}, {}
    for label, path in named:
        if path.is_file():
            scores[label] = _result(path, ("fvd", "is"))
        elif (path / "metrics.json").is_file():
            reconstructions[label] = (path, _result(path / "metrics.json", ("reconstruction",)))
        elif (path / "log.jsonl").is_file():
            logs[label] = path
        else:
            raise ValueError(
                f"{path}: no JSON file, no metrics.json of eval_reconstruction and no log.jsonl of "
                "a training run"
            )
    sections = [
        *(_reconstruction(label, *found) for label, found in reconstructions.items()),
        *(_scores(scores) if scores else []),
        *(_training(label, path) for label, path in logs.items()),
    ]
    page = Report(
        title=config.title,
        summary=["Rows in grey were published; all others were measured by the runs named below."],
        sections=sections,
        provenance={
            "results": json.dumps(asdict(config)["results"]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "Python, torch": f"{platform.python_version()}, {importlib.metadata.version('torch')}",
            "command": " ".join(["python", *sys.argv]),
        },
    )
    build_report(page, config.out)
    print(f"wrote {config.out}")


def _named(given: str) -> tuple[str, Path]:
    label, equals, path = given.partition("=")
    return (label, Path(path)) if equals else (Path(given).stem, Path(given))


def _result(path: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    result = read_json(path)
    if not isinstance(result, dict) or result.get("kind") not in kinds:
        raise ValueError(f"{path}: not a result of {' or '.join(f'eval_{k}' for k in kinds)}")
    return result


def _reconstruction(label: str, folder: Path, result: dict[str, Any]) -> Section:
    items: list[Item] = list(reconstruction_tables(result).values())
    for clip in result["clips"][:CLIPS]:
        names = ["source", *result["metrics"]]
        clips = {
            name: read_frames(file, range(probe(file).frames))
            for name in names
            if (file := folder / name / f"{clip['name']}.mkv").is_file()
        }
        if len(clips) > 1 and "source" in clips:
            shown = list(clips)[1:]
            scores = {
                f"{metric.upper()} {name}": clip["scores"][name][metric]
                for metric in ("psnr", "ssim")
                for name in shown
            }
            items.append(
                Comparison(
                    title=f"Clip {clip['key']}",
                    caption=_clip_caption(clip["scores"], shown),
                    clips=clips,
                    fps=8,
                    scores=scores,
                    error_of=shown,
                )
            )
    return Section(title=f"Reconstruction: {label}", items=items)


def _clip_caption(scores: Mapping[str, Mapping[str, float]], methods: list[str]) -> str:
    parts = (f"{m} {scores[m]['psnr']:.2f} dB, SSIM {scores[m]['ssim']:.4f}" for m in methods)
    return f"Whole clip: {'; '.join(parts)}."


def _scores(results: Mapping[str, dict[str, Any]]) -> list[Section]:
    """One table per name and set-up: only rows of equal protocols stand together."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for label, result in results.items():
        if "protocol" not in result:
            raise ValueError(
                f"{label}: made by an older version, without a protocol. Measure anew."
            )
        protocol = json.dumps([result["name"], result["protocol"]], sort_keys=True)
        groups.setdefault(protocol, {})[label] = result
    firsts: dict[str, tuple[int, dict[str, Any]]] = {}  # of each kind: table number, protocol
    tables = []
    for number, group in enumerate(groups.values(), 1):
        first = next(iter(group.values()))
        table, protocol = firsts.setdefault(first["kind"], (number, first["protocol"]))
        changes = [line for line in differences(protocol, first["protocol"]) if table != number]
        why = [f"Does not compare with table ({table}): {'; '.join(changes)}."] if changes else []
        tables.append(_score_table(group, f" ({number})" if len(groups) > 1 else "", why))
    intro = "Results of different protocols, weights or reference clips are in different tables."
    return [Section(title="Generation", items=tables, intro=[intro])]


def _score_table(group: Mapping[str, dict[str, Any]], suffix: str, why: list[str]) -> Table:
    first = next(iter(group.values()))
    is_score = first["kind"] == "is"
    better = "high" if is_score else "low"
    columns = [
        "run",
        Column(name=first["name"], better=better, decimals=2),
        Column(name="±", decimals=2),
        Column(name="ceiling" if is_score else "FVD at infinity", decimals=2),
        Column(name="real clips" if is_score else "KVD", decimals=2 if is_score else 4),
        "clips",
    ]
    rows = []
    for label, r in group.items():
        infinity, real = r.get("infinity"), r["real"]
        if is_score:
            more = [r["ceiling"], real["value"] if real else None]
        else:
            more = [infinity["value"] if infinity else None, r["kvd"]]
        rows.append([label, r["value"], r["std"], *more, r["fake"]["clips"]])
    notes = [note for r in group.values() for note in r["notes"]]
    published = first["extractor"]["published_weights"]
    metrics = ["is" if is_score else "fvd", "", "", "", ""]
    return Table(
        title=first["name"] + suffix,
        columns=columns,
        rows=rows,
        reference_rows=published_rows(metrics) if published else (),
        notes=[*why, *dict.fromkeys(notes)],
    )


def _training(label: str, folder: Path) -> Section:
    lines = read_log(folder)
    names = {name for line in lines for name in line if name != "step"}
    curves = []
    for name in sorted(names):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if len(points) > 1 and all(isinstance(value, int | float) for _, value in points):
            steps, values = zip(*points, strict=True)
            series = {label: (steps, values)}
            curves.append(Curve(title=name, x_label="step", y_label=name, series=series))
    if not curves:
        raise ValueError(f"{folder}/log.jsonl: fewer than two steps, nothing to draw")
    return Section(title=f"Training: {label}", items=curves)


if __name__ == "__main__":
    main(MakeReport, run)
