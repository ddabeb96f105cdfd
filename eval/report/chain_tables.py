"""The tables of a chain: each row's measures and score, and which measures foretell the score."""

from collections.abc import Mapping
from typing import Any

from eval.report.diffusability_tables import INTRO, in_order, measure_column
from eval.report.items import Column, Section, Table
from eval.report.seed_table import mean_and_spread


def chain_tables(result: Mapping[str, Any]) -> list[Table]:
    """Measures and scores, mean ± standard deviation over the seeds; rank correlations.

    Args:
        result: what `scripts/chain.py` writes to chain.json; rows that have no seed yet are left
            out.
    """
    rows = {name: list(cells.values()) for name, cells in result["cells"].items() if cells}
    first = next(iter(rows.values()))[0]
    names = in_order(n for cells in rows.values() for cell in cells for n in cell["measures"])
    columns = [measure_column(name) for name in names]
    seeds = {len(cells) for cells in rows.values()}
    caption = f"{first['clips']} generated clips a row and seed; "
    caption += f"mean ± standard deviation over {' or '.join(map(str, sorted(seeds)))} seeds."
    table = Table(
        title="From VAEs to a generator's score",
        columns=["VAE", Column(name=first["name"], better="low"), *columns, "minutes"],
        rows=[
            [
                name,
                mean_and_spread([cell["score"] for cell in cells], 2),
                *(
                    mean_and_spread(
                        [c["measures"][measure] for c in cells],
                        4 if column.decimals is None else column.decimals,
                    )
                    if all(measure in c["measures"] for c in cells)
                    else None
                    for measure, column in zip(names, columns, strict=True)
                ),
                mean_and_spread([sum(c["seconds"].values()) / 60 for c in cells], 1),
            ]
            for name, cells in rows.items()
        ],
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
