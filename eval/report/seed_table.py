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

    def cell(values: Sequence[float], digits: int) -> str:
        spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{spread}"

    columns = [*heading, *scores]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, (cells, seeds) in rows.items():
        runs = list(seeds)
        numbers = [cell([run[score] for run in runs], digits) for score, digits in scores.items()]
        lines.append(f"| {' | '.join([name, *cells, *numbers])} |")
    return lines
