"""The tables of a reconstruction run, with the paper's rows beside the measured ones."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import atomic_path, write_text
from eval.published.reconstructions import published_rows
from eval.report.items import Cell, Column, PublishedRow, Table
from eval.report.tables import to_csv, to_latex, to_markdown

UNCOMPRESSED = ("last_frames",)
"""Baselines that keep frames at full size: no rivals of what compresses them."""
MACS = "17x512x512"
"""Size at which MACs are counted, that of the supplement's Table 3."""
SPANS = ("[-1,1]", "[0,1]")
"""Ranges of the pixels in Eq. 2."""
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
            *_quality(scores),
            missing,
            [PSNR_NOTE, *result["notes"], *_windows(methods)],
        ),
        "positions": _table(
            "SSIM by position in the frame group, and flicker",
            f"{caption} The first frame is left out; frames p, p + {result['protocol']['group']}, "
            "... are averaged (supplement 1.2). Margin: largest minus smallest. Flicker: mean "
            "change of the error from frame to frame, images in [0, 1].",
            *_positions(scores),
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


Columns = list[tuple[str, Column]]
"""Published metric's name, or none, and heading."""
Rows = dict[str, list[Cell]]
"""Method to a value for each column."""


def _table(
    title: str,
    caption: str,
    columns: Columns,
    rows: Rows,
    missing: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Table:
    keep = [
        i
        for i, (key, _) in enumerate(columns)
        if key == "lpips" or any(row[i] is not None for row in rows.values())
    ]
    return Table(
        title=title,
        caption=caption,
        columns=["method", *(columns[i][1] for i in keep)],
        rows=[[name, *(row[i] for i in keep)] for name, row in rows.items()],
        reference_rows=[
            *(
                PublishedRow(cells=[name, *(None for _ in keep)], source=remedy)
                for name, remedy in missing.items()
            ),
            *published_rows([columns[i][0] for i in keep]),
        ],
        notes=notes,
        unranked=UNCOMPRESSED,
    )


def _quality(scores: Mapping[str, Any]) -> tuple[Columns, Rows]:
    first = next(iter(scores.values()))
    networks = [key for key in first if key.startswith("lpips_")]
    rfvd = first["rfvd"]["name"] if "rfvd" in first else ""
    columns = [
        ("psnr", Column(name="PSNR", unit="dB", better="high", decimals=2)),
        ("", Column(name="PSNR pooled", unit="dB", better="high", decimals=2)),
        ("ssim", Column(name="SSIM", better="high", decimals=4)),
        *(("", Column(name=f"LPIPS {key[6:]}", better="low", decimals=5)) for key in networks),
        ("lpips", Column(name="LPIPS of unstated network", decimals=5)),
        # a longer name is of another network than the paper's
        ("rfvd" if rfvd.count("_") == 1 else "", Column(name=rfvd, better="low", decimals=2)),
        *(("", Column(name=f"information kept {s}", better="high", decimals=4)) for s in SPANS),
    ]
    rows = {
        name: [
            *(found["psnr"], found["psnr_pooled"], found["ssim"]),
            *(found[key] for key in networks),
            None,
            found["rfvd"]["value"] if rfvd else None,
            *(found["information_preservation"][span] for span in SPANS),
        ]
        for name, found in scores.items()
    }
    return columns, rows


def _positions(scores: Mapping[str, Any]) -> tuple[Columns, Rows]:
    count = len(next(iter(scores.values()))["ssim_by_position"]["positions"])
    columns = [
        *((f"frame_{i}", Column(name=f"frame {i}", decimals=4)) for i in range(1, count + 1)),
        ("margin", Column(name="margin", better="low", decimals=4)),
        ("", Column(name="flicker border", better="low", decimals=5)),
        ("", Column(name="flicker inside", better="low", decimals=5)),
    ]
    rows = {
        name: [
            *found["ssim_by_position"]["positions"],
            found["ssim_by_position"]["margin"],
            *(found["flicker"]["border"], found["flicker"]["inside"]),
        ]
        for name, found in scores.items()
    }
    return columns, rows


def _cost_table(methods: Mapping[str, Any], missing: Mapping[str, str]) -> Table:
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
    columns = [
        ("parameters", Column(name="parameters", unit="M", decimals=1)),
        ("macs", Column(name=f"MACs at {MACS}", unit="T", decimals=1)),
        ("", Column(name=f"FLOPs at {MACS}", unit="T", decimals=1)),
    ]
    for precision in ("fp32", "bf16"):
        for key, name in (("encode", "encode"), ("decode", "decode"), ("total", "both")):
            heading = Column(name=f"{name} at {size}, {precision}", unit="s", decimals=2)
            columns.append((key if precision == "fp32" else "", heading))
        for name in ("encoder", "decoder"):
            heading = f"{name} memory at {size}, {precision}"
            columns.append(("", Column(name=heading, unit="MB", decimals=0)))
    rows: Rows = {}
    for name, method in methods.items():
        if not method.get("parameters"):
            continue
        rows[name] = [
            None if method.get(key) is None else method[key] / scale
            for key, scale in (("parameters", 1e6), ("macs", 1e12), ("flops", 1e12))
        ]
        fp32 = method.get("cost") or {}
        for found in (fp32, fp32.get("bfloat16")):
            rows[name] += (
                [
                    *(found["encode"], found["decode"], found["encode"] + found["decode"]),
                    *(found["encode_memory"] / 1e6, found["decode_memory"] / 1e6),
                ]
                if found
                else [None] * 5
            )
    return _table("Cost", caption, columns, rows, missing, _windows(methods))


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
