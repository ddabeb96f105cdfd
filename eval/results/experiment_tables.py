"""Tables of experiments: mean ± standard deviation over the seeds."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from eval.report.items import Column, Section, Table
from eval.results.diffusability_tables import INTRO, in_order, measure_column


def ablation_tables(result: Mapping[str, Any]) -> list[Table]:
    """A table of each test set, and one of the held-out clips in the logs if there are scores.

    Args:
        result: what `scripts/ablate.py` writes to ablation.json.
    """
    rows = result["rows"]
    names = list(dict.fromkeys(n for r in rows.values() for s in r["scores"].values() for n in s))
    tests = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    shown = [n for n in names if "psnr_frame" not in n or n in result["compared"]]
    return [_table(test, shown, rows) for test in tests]


def ablation_section(label: str, result: Mapping[str, Any]) -> Section:
    """What the seeds say about each claim, then the tables."""
    return Section(title=label, items=ablation_tables(result), intro=result["claims"])


def chain_tables(result: Mapping[str, Any]) -> list[Table]:
    """Measures and scores, mean ± standard deviation over the seeds; rank correlations.

    Args:
        result: what `scripts/chain.py` writes to chain.json; rows that have no seed yet are left
            out.
    """
    rows = {name: list(cells.values()) for name, cells in result["cells"].items() if cells}
    first = next(iter(rows.values()))[0]
    names = in_order(n for cells in rows.values() for cell in cells for n in cell["measures"])
    scores = {
        "score": Column(name=first["name"], better="low", decimals=2),
        "is": Column(name="IS", better="high", decimals=2),
        "recognized": Column(name="recognized", better="high", decimals=3),
    }
    columns = {key: column for key, column in scores.items() if key in first}
    columns |= {name: measure_column(name) for name in names}
    seeds = {len(cells) for cells in rows.values()}
    caption = f"{first['clips']} generated clips a row and seed; "
    caption += f"mean ± standard deviation over {' or '.join(map(str, sorted(seeds)))} seeds."
    lines = []
    for name, cells in rows.items():
        line: list[str | None] = [name]
        found = [cell["measures"] | cell for cell in cells]
        for key, column in columns.items():
            decimals = 4 if column.decimals is None else column.decimals
            known = all(key in each for each in found)
            line.append(mean_and_spread([each[key] for each in found], decimals) if known else None)
        minutes = [sum(cell["seconds"].values()) / 60 for cell in cells]
        lines.append([*line, mean_and_spread(minutes, 1)])
    table = Table(
        title="From VAEs to a generator's score",
        columns=["VAE", *columns.values(), "minutes"],
        rows=lines,
        caption=caption,
    )
    correlations = result["correlations"]
    if not correlations:
        return [table]
    return [
        table,
        Table(
            title=f"Rank correlation with {first['name']}",
            columns=[
                "measure",
                Column(name="Spearman's rho", decimals=2),
                Column(name="p", decimals=3),
                "rows",
            ],
            rows=[
                [measure_column(name).name, found["rho"], found["p"], found["rows"]]
                for name in in_order(correlations)
                for found in [correlations[name]]
            ],
            caption="Over the rows' means. A lower score is better: a measure that helps when it "
            "is high has a negative rho. p is of one measure, not corrected for their number.",
        ),
    ]


def chain_section(label: str, result: Mapping[str, Any]) -> Section:
    """What the measures mean, then the tables."""
    return Section(title=label, items=chain_tables(result), intro=INTRO)


def seed_table(
    heading: Sequence[str],
    rows: Mapping[str, tuple[Sequence[str], Iterable[Mapping[str, float]]]],
    scores: Mapping[str, int],
) -> list[str]:
    """The lines of the table.

    Args:
        heading: of the columns before the scores.
        rows: first cell to the other cells before the scores, and the scores of each seed.
        scores: name to decimals.
    """

    columns = [*heading, *scores]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, (cells, seeds) in rows.items():
        runs = list(seeds)
        numbers = [mean_and_spread([run[n] for run in runs], d) for n, d in scores.items()]
        lines.append(f"| {' | '.join([name, *cells, *numbers])} |")
    return lines


def mean_and_spread(values: Sequence[float], decimals: int) -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    spread = f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean(values):.{decimals}f}{spread}"


def _table(test: str, names: Sequence[str], rows: Mapping[str, Any]) -> Table:
    scores = [name for name in names if name.rpartition("/")[0] == test]
    seeds = max(len(row["scores"]) for row in rows.values())
    cells = []
    for name, row in rows.items():
        runs = [run for run in row["scores"].values() if all(score in run for score in scores)]
        if runs:
            count = row["parameters"]
            values = (
                mean_and_spread([run[score] for run in runs], 2 if "psnr" in score else 4)
                for score in scores
            )
            cells.append([name, f"{count:,}" if count else None, *values])
    return Table(
        title=f"Test set {test}" if test else "Held-out clips",
        columns=["row", "parameters", *(score.rpartition("/")[2] for score in scores)],
        rows=cells,
        caption=f"Mean ± standard deviation over {seeds} seed{'s' if seeds > 1 else ''}.",
    )
