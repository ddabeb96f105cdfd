"""A Markdown table of scores over several seeds: mean ± standard deviation."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev


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
