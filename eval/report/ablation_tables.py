"""The tables of an ablation: mean ± standard deviation over the seeds, one table per test set."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.items import Section, Table
from eval.report.seed_table import mean_and_spread


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
