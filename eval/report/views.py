"""What the page's templates need of each item: texts, coordinates, videos as data URIs."""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.video.encode import encode_video
from eval.report import drawing as figures
from eval.report.items import Cell, Column, Comparison, Curve, Gallery, Item, Table
from eval.report.tables import filled_columns

FPS = 8  # frames per second at which all clips play
QUALITY = 16  # H.264 constant rate factor: visually lossless on enlarged clips
COMPARISON_PIXELS = 256  # longer side that small clips are enlarged to
GALLERY_PIXELS = 128
FILTER_FROM = 9  # rows from which a table gets a filter box
CHOOSE_FROM = 4  # columns of numbers from which readers can choose among them
DOTS_UP_TO = 40  # points of a line that are also drawn as dots

View = dict[str, Any]


def view(item: Item) -> View:
    """The values that `items.html` shows of an item; encodes its videos."""
    views: Any = {Table: _table, Curve: _curve, Comparison: _comparison, Gallery: _gallery}
    shown = views[type(item)](item)
    return {"kind": item.kind, "title": item.title, "caption": item.caption, "notes": (), **shown}


def _table(table: Table) -> View:
    columns = filled_columns(table)
    published = [row.cells for row in table.reference_rows]
    ranked = [row for row in table.rows if row[0] not in table.unranked]
    best = [_best([row[index] for row in ranked], column) for index, column in enumerate(columns)]

    def cells(row: Sequence[Cell], measured: bool) -> list[View]:
        return [
            {
                "text": figures.format_number(cell, column.decimals),
                "number": repr(float(cell)) if isinstance(cell, Real) else "",
                "best": measured and top is not None and cell == top,
            }
            for cell, column, top in zip(row, columns, best, strict=True)
        ]

    groups = groupby(table.reference_rows, key=lambda row: (row.source, row.setting))
    numeric = [
        any(isinstance(cell, Real) for cell in values)
        for values in zip(*table.rows, *published, strict=True)
    ]
    return {
        "columns": [
            {"column": column, "numeric": is_numeric}
            for column, is_numeric in zip(columns, numeric, strict=True)
        ],
        "rows": [cells(row, row in ranked) for row in table.rows],
        "published": [
            {
                "heading": f"{source}: {setting}" if setting else source,
                "rows": [cells(row.cells, False) for row in rows],
            }
            for (source, setting), rows in groups
        ],
        "notes": table.notes,
        "filter": len(table.rows) + len(published) >= FILTER_FROM,
        "choose": sum(numeric[1:]) >= CHOOSE_FROM,
    }


def _best(values: Sequence[Cell], column: Column) -> float | None:
    """The best of at least two measured numbers; None if no direction is better."""
    numbers = [float(v) for v in values if isinstance(v, Real) and not np.isnan(float(v))]
    if column.better is None or len(numbers) < 2:
        return None
    return max(numbers) if column.better == "high" else min(numbers)


def _curve(curve: Curve) -> View:
    points = {}
    remarks = []
    for name in curve.series:
        xs, ys = curve.values(name)
        shown = curve.drawable(name)
        if omitted := int((~shown).sum()):
            zero = ", or 0 and below on a log axis" if curve.log_y else ""
            remarks.append(
                f"{name}: {omitted:,} of {len(xs):,} values are left out (not finite{zero})."
            )
        points[name] = figures.thin(xs, np.where(shown, ys, np.nan))
        if len(points[name][0]) < len(xs):
            remarks.append(f"{name}: {len(xs):,} points, drawn by the extremes of equal spans.")
    all_x = np.concatenate([xs[np.isfinite(ys)] for xs, ys in points.values()])
    all_y = np.concatenate([ys[np.isfinite(ys)] for _, ys in points.values()])
    x_axis = figures.Axis.around(all_x, log=False, margin=0.0)
    y_axis = figures.Axis.around(all_y, log=curve.log_y, margin=0.05)
    lines, data = [], []
    for name, (xs, ys) in points.items():
        x, y = x_axis.place(xs), y_axis.place(ys)
        few = np.isfinite(ys).sum() <= DOTS_UP_TO
        lines.append(
            {
                "name": name,
                "path": figures.line_path(x, y),
                "dots": figures.dots_path(x, y) if few else "",
                "last": figures.format_number(float(curve.values(name)[1][-1])),
            }
        )
        data.append([name, _rounded(xs), _rounded(ys)])
    return {
        "x_label": curve.x_label,
        "y_label": curve.y_label,
        "log_y": curve.log_y,
        "x_ticks": x_axis.ticks(),
        "y_ticks": y_axis.ticks(),
        "lines": lines,
        "notes": remarks,
        "data": json.dumps(
            {"x": [x_axis.low, x_axis.high], "series": data}, allow_nan=False, separators=(",", ":")
        ),
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values.tolist()]


def _comparison(comparison: Comparison) -> View:
    clips = comparison.clips
    reference, *others = clips.values()
    errors = [figures.absolute_error(clip, reference) for clip in others if comparison.errors]
    gain = figures.automatic_gain(errors) if errors else None
    pictures = [*clips.values(), *(figures.paint_error(error, gain or 1.0) for error in errors)]
    sheet = figures.Sheet.layout(pictures, target=COMPARISON_PIXELS, gap=16)
    panels: list[View] = [
        {"name": name, "corner": sheet.corner(index), "error": None}
        for index, name in enumerate(clips)
    ]
    for index, error in enumerate(errors):
        psnrs = figures.psnr_per_frame(others[index], reference)
        texts = [figures.format_number(psnr, 1) for psnr in psnrs]
        panels[1 + index]["error"] = {
            "corner": sheet.corner(len(clips) + index),
            "mean": float(error.mean()),
            "psnr": json.dumps(texts, ensure_ascii=False),
            "first_psnr": texts[0],
        }
    height, width = sheet.clip_size
    return {
        "video": _data_uri(sheet.frames(pictures)),
        "scores": json.dumps(dict(comparison.scores), allow_nan=False),
        "frames": len(reference),
        "fps": FPS,
        "height": height,
        "width": width,
        "size": f"{sheet.width} × {sheet.height}",
        "factor": sheet.factor,
        "gain": gain,
        "panels": panels,
    }


def _gallery(gallery: Gallery) -> View:
    classes = []
    for name, clips in gallery.clips.items():
        sheet = figures.Sheet.layout(clips, target=GALLERY_PIXELS, gap=4)
        headings = gallery.headings[: len(clips)]
        if headings:
            sheet = replace(sheet, columns=len(headings))
        height, width = sheet.size
        classes.append(
            {
                "name": name,
                "count": len(clips),
                "video": _data_uri(sheet.frames(clips)),
                "height": height,
                "width": width,
                "headings": [[text, len(list(equal))] for text, equal in groupby(headings)],
                "detail": f"{len(clips[0])} frames of {sheet.width} × {sheet.height}",
            }
        )
    return {"classes": classes, "fps": FPS}


def _data_uri(frames: Iterable[UInt8[np.ndarray, "h w 3"]]) -> str:
    """The frames as an H.264 mp4 inside a URI."""
    payload = encode_video(frames, FPS, codec="h264", quality=QUALITY)
    return "data:video/mp4;base64," + base64.b64encode(payload).decode("ascii")
