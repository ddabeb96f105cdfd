"""Sections of the page from results on disk: scores, samples, training runs, costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.config import differences
from common.files import read_json
from data.video.decode import read_frames
from data.video.encode import to_uint8
from data.video.probe import probe
from engine.run_folder import read_log
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.labels import read_labels
from eval.clips.source import ClipSource
from eval.published.scores import published_beside
from eval.report.items import Cell, Column, Comparison, Curve, Gallery, Item, Section, Table
from eval.results.latex import protocol_groups
from eval.results.reconstruction_tables import reconstruction_tables

CLIPS = 8  # of a reconstruction run that are shown
GALLERY_CLIPS = 4  # of each class
PAIRED_CLIPS = 2  # of each class, where as many real ones stand beside


def reconstruction_section(label: str, folder: Path, result: dict[str, Any]) -> Section:
    """Tables, and the first saved clips side by side; a results log knows of no clips."""
    items: list[Item] = list(reconstruction_tables(result).values())
    for clip in result.get("clips", ())[:CLIPS]:
        clips = {
            name: _frames(file)
            for name in ("source", *result["metrics"])
            if (file := folder / name / f"{clip['name']}.mkv").is_file()
        }
        if len(clips) < 2 or "source" not in clips:
            continue
        scores = {name: clip["scores"][name] for name in clips if name != "source"}
        texts = (f"{m} {s['psnr']:.2f} dB, SSIM {s['ssim']:.4f}" for m, s in scores.items())
        items.append(
            Comparison(
                title=f"Clip {clip['key']}",
                caption=f"Whole clip: {'; '.join(texts)}.",
                clips=clips,
                scores={
                    f"{metric.upper()} {name}": s[metric]
                    for metric in ("psnr", "ssim")
                    for name, s in scores.items()
                },
                errors=True,
            )
        )
    return Section(title=f"Reconstruction: {label}", items=items)


def score_tables(results: Sequence[tuple[str, dict[str, Any]]]) -> list[Table]:
    """One table per name and set-up: only rows of equal protocols stand together."""
    groups = protocol_groups(results)
    firsts: dict[str, tuple[int, dict[str, Any]]] = {}  # of each kind: table number, protocol
    tables = []
    for number, group in enumerate(groups, 1):
        first = next(iter(group.values()))
        table, protocol = firsts.setdefault(first["kind"], (number, first["protocol"]))
        changes = [line for line in differences(protocol, first["protocol"]) if table != number]
        why = [f"Does not compare with table ({table}): {'; '.join(changes)}."] if changes else []
        tables.append(_score_table(group, f" ({number})" if len(groups) > 1 else "", why))
    return tables


def _score_table(group: Mapping[str, dict[str, Any]], suffix: str, why: list[str]) -> Table:
    first = next(iter(group.values()))
    is_score = first["kind"] == "is"
    better = "high" if is_score else "low"
    columns: list[str | Column] = [
        "run",
        Column(name=first["name"], better=better, decimals=2),
        Column(name="±", decimals=2),
        Column(name="ceiling" if is_score else "FVD at infinity", decimals=2),
        Column(name="real clips" if is_score else "KVD", decimals=2 if is_score else 4),
        "clips",
    ]
    known = is_score and any(r["accuracy"] is not None for r in group.values())
    if known:
        columns.append(Column(name="class recognized", unit="%", better="high", decimals=0))
    rows: list[list[Cell]] = []
    for label, r in group.items():
        infinity, real = r.get("infinity"), r["real"]
        if is_score:
            more = [r["ceiling"], real["value"] if real else None]
        else:
            more = [infinity["value"] if infinity else None, r["kvd"]]
        rows.append([label, r["value"], r["std"], *more, r["fake"]["clips"]])
        if known:
            rows[-1].append(None if r["accuracy"] is None else 100 * r["accuracy"])
    notes = [note for r in group.values() for note in r["notes"]]
    return Table(
        title=first["name"] + suffix,
        columns=columns,
        rows=rows,
        reference_rows=published_beside(first, len(columns)),
        notes=[*why, *dict.fromkeys(notes)],
    )


def diagnosis_table(label: str, result: Mapping[str, Any]) -> Table:
    """How far slips move the score of a result."""
    rows = result["diagnosis"]
    return Table(
        title=f"What would a slip do to {result['name']}? {label}",
        columns=["slip", Column(name=result["name"]), Column(name="ratio", decimals=3)],
        rows=[[row["slip"], row["value"], row["ratio"]] for row in rows],
        caption="One thing is done otherwise in each row; the first row has no slip.",
        notes=[
            f"Not {row['slip']}: {row['why_not'].rstrip('.')}." for row in rows if row["why_not"]
        ],
    )


def samples_gallery(label: str, folder: Path, real: str | None = None) -> Gallery:
    """The first generated clips of each class, beside as many real ones if there is a folder."""
    generated: dict[str, list[np.ndarray]] = {}
    for clip in read_json(folder / "samples.json")["clips"]:
        group = generated.setdefault(clip["class_name"] or "all", [])
        if len(group) < (PAIRED_CLIPS if real else GALLERY_CLIPS):
            group.append(_frames(folder / clip["file"]))
    if real is None:
        return Gallery(title=label, clips=generated)
    known = read_labels(Path(real))
    if known is None:
        raise ValueError(f"{real}: no labels, so its clips cannot stand beside those of a class")
    frames, height, width, _ = next(iter(generated.values()))[0].shape
    protocol = ClipProtocol(
        frames=frames, start="center", num_clips=None, height=height, width=width
    )
    originals: dict[str, list[np.ndarray]] = {name: [] for name in generated}
    for id, clip in ClipSource(real, protocol, progress=False):
        number = known.labels.get(id)
        group = [] if number is None else originals.get(known.class_names[number], [])
        if len(group) < PAIRED_CLIPS:
            group.append(to_uint8(clip))
    if missing := [name for name, group in originals.items() if not group]:
        raise ValueError(f"{real}: no clip of class {missing[0]}, which {folder} has")
    pairs = {  # a class with fewer clips shows them again
        name: [
            side[i % len(side)] for side in (group, generated[name]) for i in range(PAIRED_CLIPS)
        ]
        for name, group in originals.items()
    }
    return Gallery(
        title=label, clips=pairs, headings=["real"] * PAIRED_CLIPS + ["generated"] * PAIRED_CLIPS
    )


def training_section(label: str, folder: Path) -> Section:
    """A curve of everything that the run logged; on a log axis where it spans over a decade."""
    lines = read_log(folder)
    names = {name for line in lines for name in line if name != "step"}
    curves = []
    for name in sorted(names):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if len(points) > 1 and all(isinstance(value, int | float) for _, value in points):
            steps, values = zip(*points, strict=True)
            curves.append(
                Curve(
                    title=name,
                    x_label="step",
                    y_label=name,
                    series={label: (steps, values)},
                    log_y=0 < 10 * min(values) < max(values),
                )
            )
    if not curves:
        raise ValueError(f"{folder}/log.jsonl: fewer than two steps, nothing to draw")
    return Section(title=f"Training: {label}", items=curves)


def is_stages(folder: Path) -> bool:
    """Whether a folder holds the records of `common.stages`, and nothing else."""
    files = list(folder.glob("*.json"))
    return bool(files) and all("seconds" in read_json(file) for file in files)


def cost_section(label: str, folder: Path) -> Section:
    """Time and memory of the stages whose records a folder holds, in the order they ended."""
    records = {file.stem: read_json(file) for file in folder.glob("*.json")}
    ordered = sorted(records.items(), key=lambda item: item[1]["finished"])
    table = Table(
        title=f"Time and memory of the {label}",
        columns=[
            "stage",
            Column(name="time", unit="s", decimals=0),
            Column(name="processor time", unit="s", decimals=0),
            Column(name="peak memory", unit="GB", decimals=2),
        ],
        rows=[
            [name, record["seconds"], record.get("cpu_seconds"), record["memory_gb"]]
            for name, record in ordered
        ],
        notes=[
            "Processor time is that of all cores together. Memory is that of the process; GPU "
            "memory is not included."
        ],
    )
    return Section(title="Cost", items=[table])


def _frames(path: Path) -> np.ndarray:
    return read_frames(path, range(probe(path).frames))
