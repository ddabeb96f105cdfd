"""A `Table` as text for the terminal, CSV, Markdown and LaTeX; published rows stand apart in gray.

Every form says in a column of its own whether a row was measured or where it was published.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

from eval.report.drawing import column_decimals, format_number
from eval.report.items import Cell, Column, Table

MEASURED = "measured here"
GRAY, PLAIN = "\033[90m", "\033[0m"


def to_text(table: Table, *, color: bool = False) -> str:
    """Aligned columns under a title; published rows come last, gray if `color`."""
    head, measured, published = _texts(table)
    widths = [max(map(len, column)) for column in zip(head, *measured, *published, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *numbers, source = cells
        fields = [first.ljust(widths[0])]
        fields += [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        return "  ".join([*fields, source]).rstrip()

    gray, plain = (GRAY, PLAIN) if color else ("", "")
    lines = [table.title, line(head), *map(line, measured)]
    lines += [f"{gray}{line(row)}{plain}" for row in published]
    return "\n".join([*lines, *table.notes])


def to_csv(table: Table) -> str:
    """One line per row with all digits of the numbers; missing ones are empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*map(_heading, filled_columns(table)), "source"])
    for row in table.rows:
        writer.writerow([*("" if cell is None else cell for cell in row), MEASURED])
    for row in table.reference_rows:
        writer.writerow([*("" if cell is None else cell for cell in row.labeled_cells), row.source])
    return stream.getvalue()


def to_markdown(table: Table) -> str:
    """A pipe table; published rows are in gray where HTML is shown, in italics everywhere."""
    head, measured, published = _texts(table)
    align = ["---", *("---:" for _ in head[1:-1]), "---"]
    gray = [[f'<span style="color:gray">*{cell}*</span>' for cell in row] for row in published]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in (head, *measured, *gray))
    first, *others = escaped
    lines = [f"| {' | '.join(row)} |" for row in (first, align, *others)]
    parts = [f"**{table.title}**", table.caption, "\n".join(lines), *table.notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(table: Table) -> str:
    """The table in LaTeX, with published rows in gray."""
    head, measured, published = _texts(table)

    def line(cells: Sequence[str], color: str = "") -> str:
        return " & ".join(f"{color}{escape_latex(cell)}" for cell in cells) + r" \\"

    caption = " ".join(part for part in (f"{table.title}.", table.caption, *table.notes) if part)
    return latex_table(
        escape_latex(caption),
        f"l{'r' * (len(head) - 2)}l",
        [
            line(head),
            r"\midrule",
            *(line(row) for row in measured),
            *([r"\midrule"] if measured and published else []),
            *(line(row, r"\color{gray}") for row in published),
        ],
    )


def latex_table(caption: str, columns: str, rows: Sequence[str], notes: Sequence[str] = ()) -> str:
    """A `table` with `tabular` inside; needs the packages booktabs and xcolor.

    Args:
        caption: LaTeX, as all of these are.
        columns: how each is aligned, such as `lrr`.
        rows: heading, rules and rows.
        notes: in small print below.
    """
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\medskip"] if notes else []),
        *(rf"\parbox{{\linewidth}}{{\footnotesize {note}}}\par" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def filled_columns(table: Table) -> list[Column]:
    """The columns, each with the number of digits that its numbers get."""
    rows = [*table.rows, *(row.cells for row in table.reference_rows)]
    columns = [Column(name=c) if isinstance(c, str) else c for c in table.columns]
    return [
        replace(column, decimals=column_decimals(values)) if column.decimals is None else column
        for column, values in zip(columns, zip(*rows, strict=True), strict=True)
    ]


def _texts(table: Table) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Heading, measured and published rows as text."""
    columns = filled_columns(table)
    digits = [column.decimals for column in columns]

    def texts(cells: Sequence[Cell], source: str) -> list[str]:
        return [*map(format_number, cells, digits), source]

    return (
        [*map(_heading, columns), "source"],
        [texts(row, MEASURED) for row in table.rows],
        [texts(row.labeled_cells, row.source) for row in table.reference_rows],
    )


def _heading(column: Column) -> str:
    return f"{column.name}, {column.unit}" if column.unit else column.name


LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
}


def escape_latex(text: str) -> str:
    """Plain text as LaTeX that shows it."""
    return text.translate(str.maketrans(LATEX))
