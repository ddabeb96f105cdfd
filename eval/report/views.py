"""What the page's templates need of each item: texts, coordinates, videos as data URIs."""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.video.encode import encode_video
from eval.report import drawing as figures
from eval.report.items import Cell, Column, Comparison, Curve, Gallery, Item, Table

QUALITY = 16  # H.264 constant rate factor: visually lossless on enlarged clips
COMPARISON_PIXELS = 256  # longer side that small clips are enlarged to
GALLERY_PIXELS = 128
FILTER_FROM = 9  # rows from which a table gets a filter box
CHOOSE_FROM = 4  # columns of numbers from which readers can choose among them
DOTS_UP_TO = 40  # points of a line that are also drawn as dots

View = dict[str, Any]


def view(item: Item) -> View:
    """The values that `items.html` shows of an item; encodes its videos."""
    views: dict[type, Callable[[Any], View]] = {
        Table: _table,
        Curve: _curve,
        Comparison: _comparison,
        Gallery: _gallery,
    }
    return {
        "kind": type(item).__name__.lower(),
        "title": item.title,
        "caption": item.caption,
        **views[type(item)](item),
    }


def _table(table: Table) -> View:
    columns = [Column(name=c) if isinstance(c, str) else c for c in table.columns]
    published = [row.cells for row in table.reference_rows]
    by_column = list(zip(*table.rows, *published, strict=True))
    decimals = [
        figures.column_decimals(values) if column.decimals is None else column.decimals
        for column, values in zip(columns, by_column, strict=True)
    ]
    ranked = [row for row in table.rows if row[0] not in table.unranked]
    best = [_best([row[index] for row in ranked], column) for index, column in enumerate(columns)]

    def cells(row: Sequence[Cell], measured: bool) -> list[View]:
        return [
            {
                "text": figures.format_number(cell, digits),
                "number": repr(float(cell)) if isinstance(cell, Real) else "",
                "best": measured and top is not None and cell == top,
            }
            for cell, digits, top in zip(row, decimals, best, strict=True)
        ]

    groups = groupby(table.reference_rows, key=lambda row: (row.source, row.setting))
    numeric = [any(isinstance(cell, Real) for cell in values) for values in by_column]
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
            zero = ", or 0 and below on a log axis" if curve.log_x or curve.log_y else ""
            remarks.append(
                f"{name}: {omitted:,} of {len(xs):,} values are left out (not finite{zero})."
            )
        if curve.log_x:
            xs, ys, shown = xs[xs > 0], ys[xs > 0], shown[xs > 0]
        points[name] = figures.thin(xs, np.where(shown, ys, np.nan))
        if len(points[name][0]) < len(xs):
            remarks.append(f"{name}: {len(xs):,} points, drawn by the extremes of equal spans.")
    all_x = np.concatenate([xs[np.isfinite(ys)] for xs, ys in points.values()])
    all_y = np.concatenate([ys[np.isfinite(ys)] for _, ys in points.values()])
    x_axis = figures.Axis.around(all_x, log=curve.log_x, margin=0.0)
    y_axis = figures.Axis.around(all_y, log=curve.log_y, margin=0.05)
    lines, data = [], []
    for name, (xs, ys) in points.items():
        shown = np.isfinite(ys)
        place = y_axis.place(np.where(shown, ys, y_axis.low))
        x = x_axis.place(np.where(shown, xs, x_axis.low))
        few = shown.sum() <= DOTS_UP_TO
        dots = figures.dots_path(x[shown], place[shown]) if few else ""
        lines.append(
            {
                "name": name,
                "path": figures.line_path(x, place, shown),
                "dots": dots,
                "last": figures.format_number(float(curve.values(name)[1][-1])),
            }
        )
        data.append([name, _rounded(xs), _rounded(np.where(shown, ys, np.nan))])
    return {
        "x_label": curve.x_label,
        "y_label": curve.y_label,
        "log": [a for a, is_log in (("x", curve.log_x), ("y", curve.log_y)) if is_log],
        "x_ticks": x_axis.ticks(),
        "y_ticks": y_axis.ticks(),
        "lines": lines,
        "remarks": remarks,
        "data": json.dumps(
            {
                "x": [x_axis.low, x_axis.high, x_axis.log],
                "y": [y_axis.low, y_axis.high, y_axis.log],
                "series": data,
            },
            allow_nan=False,
            separators=(",", ":"),
        ),
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values.tolist()]


def _comparison(comparison: Comparison) -> View:
    clips = comparison.clips
    reference = next(iter(clips))
    errors = {
        name: figures.absolute_error(clips[name], clips[reference]) for name in comparison.error_of
    }
    gain = comparison.gain
    if gain is None and errors:
        gain = figures.automatic_gain(list(errors.values()))
    maps = [figures.paint_error(error, gain or 1.0) for error in errors.values()]
    pictures = [*clips.values(), *maps]
    sheet = figures.Sheet.layout(pictures, target=COMPARISON_PIXELS, gap=16, most_columns=4)
    corners = {name: sheet.corner(index) for index, name in enumerate(clips)}
    error_corners = {name: sheet.corner(len(clips) + i) for i, name in enumerate(errors)}
    height, width = sheet.clip_size
    return {
        "video": _data_uri(sheet.frames(pictures), comparison.fps),
        "scores": json.dumps(dict(comparison.scores), allow_nan=False),
        "frames": len(clips[reference]),
        "fps": comparison.fps,
        "height": height,
        "width": width,
        "size": f"{sheet.width} × {sheet.height}",
        "factor": sheet.factor,
        "gain": gain,
        "saturation": 255 / gain if gain else None,
        "panels": [
            {
                "name": name,
                "corner": corners[name],
                "error_corner": error_corners.get(name),
                "error_mean": float(errors[name].mean()) if name in errors else None,
                "psnr": _psnr(clips[name], clips[reference]) if name in errors else None,
            }
            for name in clips
        ],
    }


def _psnr(clip: UInt8[np.ndarray, "t h w 3"], reference: UInt8[np.ndarray, "t h w 3"]) -> View:
    values = figures.psnr_per_frame(clip, reference)
    texts = [figures.format_number(value, 1) for value in values]
    return {"frames": json.dumps(texts, ensure_ascii=False), "first": texts[0]}


def _gallery(gallery: Gallery) -> View:
    classes = []
    for name, clips in gallery.clips.items():
        sheet = figures.Sheet.layout(clips, target=GALLERY_PIXELS, gap=4, most_columns=4)
        headings = gallery.headings[: len(clips)]
        if headings:
            sheet = replace(sheet, columns=len(headings))
        height, width = sheet.size
        classes.append(
            {
                "name": name,
                "count": len(clips),
                "video": _data_uri(sheet.frames(clips), gallery.fps),
                "height": height,
                "width": width,
                "headings": [[text, len(list(equal))] for text, equal in groupby(headings)],
                "detail": f"{len(clips[0])} frames of {sheet.width} × {sheet.height}",
            }
        )
    return {"classes": classes, "fps": gallery.fps}


def _data_uri(frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float) -> str:
    """The frames as an H.264 mp4 inside a URI."""
    payload = encode_video(frames, fps, codec="h264", quality=QUALITY)
    return "data:video/mp4;base64," + base64.b64encode(payload).decode("ascii")
