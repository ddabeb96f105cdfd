"""Tables of experiments: mean ± standard deviation over the seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

from eval.report.items import Cell, Column, Section, Table
from eval.results.diffusability_tables import INTRO, in_order, measure_column


def seed_table(
    title: str,
    heading: str,
    columns: Mapping[str, Column],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    caption: str,
) -> Table:
    """A cell is the mean ± standard deviation over the seeds; the mean alone of a single value.

    Args:
        title: of the table.
        heading: of the column that names the rows.
        columns: score to its column, of four decimals where it names none.
        rows: name to the scores of each seed; a cell is empty if a seed has not its score.
        caption: of the table.
    """
    lines: list[list[Cell]] = []
    for name, seeds in rows.items():
        lines.append([name])
        for score, column in columns.items():
            if not all(score in seed for seed in seeds):
                lines[-1].append(None)
                continue
            values = [seed[score] for seed in seeds]
            decimals = 4 if column.decimals is None else column.decimals
            spread = f" ± {stdev(values):,.{decimals}f}" if len(values) > 1 else ""
            lines[-1].append(f"{mean(values):,.{decimals}f}{spread}")
    return Table(title=title, columns=[heading, *columns.values()], rows=lines, caption=caption)


def ablation_tables(result: Mapping[str, Any]) -> list[Table]:
    """A table of each test set, and one of the held-out clips in the logs if there are scores.

    Args:
        result: what `scripts/ablate.py` writes to ablation.json.
    """
    rows = result["rows"]
    names = list(dict.fromkeys(n for r in rows.values() for s in r["scores"].values() for n in s))
    seeds = max(len(row["scores"]) for row in rows.values())
    tables = []
    for test in dict.fromkeys(name.rpartition("/")[0] for name in names):
        columns = {
            name: Column(name=name.rpartition("/")[2], decimals=2 if "psnr" in name else 4)
            for name in names
            if name.rpartition("/")[0] == test
            and ("psnr_frame" not in name or name in result["compared"])
        }
        measured = {}
        for name, row in rows.items():
            runs = [run for run in row["scores"].values() if columns.keys() <= run.keys()]
            if runs:
                measured[name] = runs
        table = seed_table(
            f"Test set {test}" if test else "Held-out clips",
            "row",
            columns,
            measured,
            f"Mean ± standard deviation over {seeds} seed{'s' if seeds > 1 else ''}.",
        )
        lines = []
        for name, *cells in table.rows:
            count = rows[str(name)]["parameters"]
            lines.append([name, f"{count:,}" if count else None, *cells])
        heading, *others = table.columns
        tables.append(replace(table, columns=[heading, "parameters", *others], rows=lines))
    return tables


def ablation_section(label: str, result: Mapping[str, Any]) -> Section:
    """What the seeds say about each claim, then the tables."""
    return Section(title=label, items=ablation_tables(result), intro=result["claims"])


def chain_tables(result: Mapping[str, Any]) -> list[Table]:
    """Measures and scores, mean ± standard deviation over the seeds; rank correlations.

    Args:
        result: what `scripts/chain.py` writes to chain.json; rows that have no seed yet are left
            out.
    """
    rows = {
        name: [
            {**cell, **cell["measures"], "minutes": sum(cell["seconds"].values()) / 60}
            for cell in cells.values()
        ]
        for name, cells in result["cells"].items()
        if cells
    }
    first = next(iter(rows.values()))[0]
    names = in_order(n for cells in rows.values() for cell in cells for n in cell["measures"])
    scores = {
        "score": Column(name=first["name"], better="low", decimals=2),
        "is": Column(name="IS", better="high", decimals=2),
        "recognized": Column(name="recognized", better="high", decimals=3),
    }
    columns = {key: column for key, column in scores.items() if key in first}
    columns |= {name: measure_column(name) for name in names}
    columns["minutes"] = Column(name="minutes", decimals=1)
    seeds = sorted({len(cells) for cells in rows.values()})
    caption = f"{first['clips']} generated clips a row and seed; "
    caption += f"mean ± standard deviation over {' or '.join(map(str, seeds))} seeds."
    tables = [seed_table("From VAEs to a generator's score", "VAE", columns, rows, caption)]
    if correlations := result["correlations"]:
        rho, p = Column(name="Spearman's rho", decimals=2), Column(name="p", decimals=3)
        tables.append(
            Table(
                title=f"Rank correlation with {first['name']}",
                columns=["measure", rho, p, "rows"],
                rows=[
                    [measure_column(name).name, found["rho"], found["p"], found["rows"]]
                    for name in in_order(correlations)
                    for found in [correlations[name]]
                ],
                caption="Over the rows' means. A lower score is better: a measure that helps when "
                "it is high has a negative rho. p is of one measure, not corrected for their "
                "number.",
            )
        )
    return tables


def chain_section(label: str, result: Mapping[str, Any]) -> Section:
    """What the measures mean, then the tables."""
    return Section(title=label, items=chain_tables(result), intro=INTRO)
