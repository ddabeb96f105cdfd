"""The tables of a reconstruction run, with the paper's rows beside the measured ones."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import atomic_path, write_text
from eval.published.reconstructions import published_rows
from eval.report.items import Cell, Column, PublishedRow, Table
from eval.report.tables import to_csv, to_latex, to_markdown

UNCOMPRESSED = ("keyframes",)
"""Baselines that keep frames at full size: no rivals of what compresses them."""
MACS = "17x512x512"
"""Size at which MACs are counted, that of the supplement's Table 3."""
PSNR_NOTE = (
    "PSNR is the mean over frames, then videos; PSNR pooled is that of the pooled squared error. "
    "An exact frame counts as 100 dB. The paper does not say which it uses, nor LPIPS's network."
)


def reconstruction_tables(result: Mapping[str, Any]) -> dict[str, Table]:
    """`quality`, `positions` and, where it was measured, `cost`, from the result that is written.

    Columns without any measured value are left out, except the paper's LPIPS, and so are published
    rows that then have nothing to show. Rows of VAEs under `missing` have no number and say instead
    of where they were measured what is to be put where.
    """
    scores, methods = result["metrics"], result["methods"]
    missing = result.get("missing", {})
    protocol = result["protocol"]
    size = "x".join(str(n) for n in (protocol["frames"], *protocol["size"]))
    caption = f"{protocol['clips']} clips of {size} at stride {protocol['stride']}."
    tables = {
        "quality": _table(
            "Reconstruction",
            caption,
            _quality_columns(scores),
            scores,
            missing,
            [PSNR_NOTE, *result["notes"], *_windows(methods)],
        ),
        "positions": _table(
            "SSIM by position in the frame group, and flicker",
            f"{caption} The first frame is left out; frames p, p + {result['protocol']['group']}, "
            "... are averaged (supplement 1.2). Margin: largest minus smallest. Flicker: mean "
            "change of the error from frame to frame, images in [0, 1].",
            _position_columns(scores),
            scores,
            missing,
        ),
    }
    if any(method.get("cost") or method.get("parameters") for method in methods.values()):
        tables["cost"] = _cost_table(methods, missing)
    return tables


def write_tables(tables: Mapping[str, Table], folder: Path) -> None:
    """`tables.md`, `tables.tex`, and `<name>.csv` of each."""
    texts = {
        "tables.md": "\n".join(map(to_markdown, tables.values())),
        "tables.tex": "\n".join(map(to_latex, tables.values())),
        **{f"{name}.csv": to_csv(table) for name, table in tables.items()},
    }
    for name, text in texts.items():
        write_text(folder / name, text)


def write_clips(
    ids: Sequence[str], by_clip: Mapping[str, Sequence[Mapping[str, float]]], path: Path
) -> None:
    """One CSV line per clip and method with the clip's own scores: to find what fails."""
    first = next(iter(by_clip.values()))
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["clip", "method", *first[0]])
        for i, id in enumerate(ids):
            for method, scores in by_clip.items():
                writer.writerow([id, method, *scores[i].values()])


Columns = Sequence[tuple[str, Column, Callable[[Any], Cell]]]
"""Published metric's name, heading, and how the measured value is found."""


def _table(
    title: str,
    caption: str,
    columns: Columns,
    rows: Mapping[str, Any],
    missing: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Table:
    cells = {name: [value(row) for _, _, value in columns] for name, row in rows.items()}
    keep = [
        i
        for i, (key, _, _) in enumerate(columns)
        if key == "lpips" or any(row[i] is not None for row in cells.values())
    ]
    kept = [columns[i] for i in keep]
    return Table(
        title=title,
        caption=caption,
        columns=["method", *(column for _, column, _ in kept)],
        rows=[[name, *(row[i] for i in keep)] for name, row in cells.items()],
        reference_rows=[
            *(
                PublishedRow(cells=[name, *(None for _ in keep)], source=remedy)
                for name, remedy in missing.items()
            ),
            *published_rows([key for key, _, _ in kept]),
        ],
        notes=notes,
        unranked=UNCOMPRESSED,
    )


def _quality_columns(scores: Mapping[str, Any]) -> Columns:
    first = next(iter(scores.values()))
    columns: list[tuple[str, Column, Callable[[Any], Cell]]] = [
        ("psnr", Column(name="PSNR", unit="dB", better="high", decimals=2), lambda s: s["psnr"]),
        (
            "",
            Column(name="PSNR pooled", unit="dB", better="high", decimals=2),
            lambda s: s["psnr_pooled"],
        ),
        ("ssim", Column(name="SSIM", better="high", decimals=4), lambda s: s["ssim"]),
    ]
    for key in (key for key in first if key.startswith("lpips_")):
        heading = Column(name=f"LPIPS {key[6:]}", better="low", decimals=5)
        columns.append(("", heading, lambda s, key=key: s[key]))
    columns.append(("lpips", Column(name="LPIPS of unstated network", decimals=5), lambda s: None))
    if "rfvd" in first:
        name = first["rfvd"]["name"]
        published = "rfvd" if name.count("_") == 1 else ""  # else of another network
        heading = Column(name=name, better="low", decimals=2)
        columns.append((published, heading, lambda s: s["rfvd"]["value"]))
    for span in ("[-1,1]", "[0,1]"):
        heading = Column(name=f"information kept {span}", better="high", decimals=4)
        columns.append(("", heading, lambda s, span=span: s["information_preservation"][span]))
    return columns


def _position_columns(scores: Mapping[str, Any]) -> Columns:
    count = len(next(iter(scores.values()))["ssim_by_position"]["positions"])

    def position(index: int) -> Callable[[Any], Cell]:
        return lambda s: s["ssim_by_position"]["positions"][index]

    return [
        *(
            (f"frame_{i + 1}", Column(name=f"frame {i + 1}", decimals=4), position(i))
            for i in range(count)
        ),
        (
            "margin",
            Column(name="margin", better="low", decimals=4),
            lambda s: s["ssim_by_position"]["margin"],
        ),
        *(
            (
                "",
                Column(name=f"flicker {where}", better="low", decimals=5),
                lambda s, where=where: s["flicker"][where],
            )
            for where in ("border", "inside")
        ),
    ]


def _cost_table(methods: Mapping[str, Any], missing: Mapping[str, str]) -> Table:
    def scaled(key: str, scale: float) -> Callable[[Any], Cell]:
        return lambda m: None if m.get(key) is None else m[key] / scale

    def cost(keys: Sequence[str], precision: str, scale: float = 1) -> Callable[[Any], Cell]:
        def value(method: Any) -> Cell:
            found = method.get("cost") or {}
            found = found if precision == "float32" else found.get(precision, {})
            return sum(found[key] for key in keys) / scale if found else None

        return value

    first = next((m["cost"] for m in methods.values() if m.get("cost")), None)
    caption = (
        "MACs are those of convolutions (what the paper calls FLOPS); FLOPs are two for each MAC, "
        "attention's products included."
    )
    size = first["size"] if first else ""
    if first:
        threads = f", {first['threads']} threads" if first["threads"] else ""
        caption += (
            f" Times are medians of {first['repeats']} runs after {first['warmup']} to warm up, "
            f"for one {size} video on {first['device']}{threads}: in float32 without TF32, "
            "and in bf16 by autocast."
        )
    columns: list[tuple[str, Column, Callable[[Any], Cell]]] = [
        ("parameters", Column(name="parameters", unit="M", decimals=1), scaled("parameters", 1e6)),
        ("macs", Column(name=f"MACs at {MACS}", unit="T", decimals=1), scaled("macs", 1e12)),
        ("", Column(name=f"FLOPs at {MACS}", unit="T", decimals=1), scaled("flops", 1e12)),
    ]
    for precision, short in (("float32", "fp32"), ("bfloat16", "bf16")):
        where = f"at {size}, {short}"
        for key, name, parts in (
            ("encode", "encode", ["encode"]),
            ("decode", "decode", ["decode"]),
            ("total", "both", ["encode", "decode"]),
        ):
            heading = Column(name=f"{name} {where}", unit="s", decimals=2)
            published = key if precision == "float32" else ""
            columns.append((published, heading, cost(parts, precision)))
        for name in ("encode", "decode"):
            heading = Column(name=f"{name}r memory {where}", unit="MB", decimals=0)
            columns.append(("", heading, cost([f"{name}_memory"], precision, 1e6)))
    vaes = {name: method for name, method in methods.items() if method.get("parameters")}
    return _table("Cost", caption, columns, vaes, missing, _windows(methods))


def _windows(methods: Mapping[str, Any]) -> list[str]:
    """How the VAEs ran whose results depend on windows in time."""
    names = {
        "official": "the windows of its authors' inference ({} frames)",
        "single": "a single window, not those of its authors' inference ({} frames)",
    }
    return [
        f"{name} ran in {names[method['windows']].format(method['native_window'])}."
        for name, method in methods.items()
        if method.get("windows")
    ]
