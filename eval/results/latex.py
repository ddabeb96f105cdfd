"""Results of several commands as LaTeX: one table per kind of score, rows of one protocol together,
footnotes for what differs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from string import ascii_lowercase
from typing import Any

from eval.published.scores import published_beside
from eval.report.drawing import column_decimals, format_number
from eval.report.tables import escape_latex, latex_table, to_latex
from eval.results.reconstruction_tables import reconstruction_tables

Labeled = tuple[str, dict[str, Any]]
"""What a row is called, and its result."""
HEADINGS = {"fvd": r"FVD $\downarrow$", "jedi": r"JEDi $\downarrow$", "is": r"IS $\uparrow$"}


def protocol_groups(results: Sequence[Labeled]) -> list[dict[str, dict[str, Any]]]:
    """Results of equal names and protocols together, each by its label, in the order of the first.

    Raises:
        ValueError: a result without a protocol, of an older version.
    """
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for label, result in results:
        if "protocol" not in result:
            raise ValueError(
                f"{label}: made by an older version, without a protocol. Measure anew."
            )
        protocol = json.dumps([result["name"], result["protocol"]], sort_keys=True)
        groups.setdefault(protocol, {})[label] = result
    return list(groups.values())


def results_latex(scores: Sequence[Labeled], reconstructions: Sequence[Labeled]) -> str:
    """Tables of all results; need the packages booktabs and xcolor.

    Args:
        scores: of eval_fvd and eval_is.
        reconstructions: of eval_reconstruction; those of one protocol share a table.

    Raises:
        ValueError: no results, or one without a protocol.
    """
    if not scores and not reconstructions:
        raise ValueError("latex: none of the results is of eval_fvd, eval_is, eval_reconstruction")
    tables = []
    for kind in HEADINGS:
        groups = protocol_groups([row for row in scores if row[1]["name"].startswith(kind)])
        if groups:
            tables.append(_score_table(kind, groups))
    for result in joined_reconstructions(reconstructions):
        tables += map(to_latex, reconstruction_tables(result).values())
    return "\n".join(tables)


def joined_reconstructions(results: Sequence[Labeled]) -> list[dict[str, Any]]:
    """Results of eval_reconstruction on the same clips, by the same networks, as one result; a
    method that several measured carries the label of its result."""
    joined: dict[str, dict[str, Any]] = {}
    for label, result in results:
        where = {name: v for name, v in result["protocol"].items() if name != "folder"}
        key = json.dumps(where, sort_keys=True)
        if key not in joined:
            joined[key] = {**result, "metrics": {}, "methods": {}, "missing": {}, "notes": []}
        into = joined[key]
        for name in result["metrics"]:
            row = f"{name} ({label})" if name in into["metrics"] else name
            into["metrics"][row] = result["metrics"][name]
            into["methods"][row] = result["methods"].get(name, {})
        into["missing"] |= result.get("missing", {})
        into["notes"] = list(dict.fromkeys([*into["notes"], *result["notes"]]))
    return list(joined.values())


def _score_table(kind: str, groups: Sequence[Mapping[str, dict[str, Any]]]) -> str:
    first = next(iter(groups[0].values()))
    setting = dict(_flat({"score": first["name"], **first["protocol"]}))
    choose = max if kind == "is" else min
    heading = HEADINGS[kind]
    if kind != "jedi" and not first["protocol"]["network"]["published_weights"]:
        heading = heading.replace(kind.upper(), escape_latex(first["name"]), 1)
    everything = [r for group in groups for r in group.values()]
    digits = max(2, column_decimals([r["value"] for r in everything]) or 0)
    lines, notes = [], []
    marks = chain(ascii_lowercase, map(str, count(len(ascii_lowercase))))
    seeds = False
    for group in groups:
        # What differs from the first protocol
        result = next(iter(group.values()))
        here = dict(_flat({"score": result["name"], **result["protocol"]}))
        changed = [
            f"{name} {here.get(name)}, not {setting.get(name)}"
            for name in {**setting, **here}
            if here.get(name) != setting.get(name)
        ]
        mark = ""
        if changed:
            letter = next(marks)
            mark = f"$^{{{letter}}}$"
            notes.append(f"{mark} Does not compare with the first rows: {_join(changed)}.")

        # Its rows, the best in bold, and published ones in gray
        best = choose(r["value"] for r in group.values())
        lines += [r"\midrule"]
        for label, r in group.items():
            value = format_number(r["value"], digits)
            value = rf"\textbf{{{value}}}" if r["value"] == best and len(group) > 1 else value
            sets = r.get("std_over") == "sets"
            seeds |= sets
            spread = "" if r["std"] is None else rf" $\pm$ {format_number(r['std'], digits)}"
            name = escape_latex(label) + (r"$^{\dagger}$" if sets else "") + mark
            lines.append(rf"{name} & {value}{spread} & {r['fake']['clips']} \\")
        for row in published_beside(result, 3):
            name, value, spread = row.cells
            text = format_number(value, digits)
            text += "" if spread is None else rf" $\pm$ {format_number(spread, digits)}"
            source = escape_latex(f"{name} ({row.source})")
            lines.append(rf"\color{{gray}}{source} & \color{{gray}}{text} & \\")
    if seeds:
        notes.append(r"$^{\dagger}$ Mean and standard deviation over sets of sampled clips.")
    if any(r["std"] is not None and r.get("std_over") == "bootstrap" for r in everything):
        notes.append(r"Other $\pm$: standard deviation over bootstrap resamples.")
    caption = _join([f"{name} {value}" for name, value in setting.items()])
    return latex_table(
        f"{heading}: {caption}.", "lrr", [rf"method & {heading} & clips \\", *lines], notes
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values as text; hashes by their first digits."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            text = str(value)
            yield f"{prefix}{name}", text[:8] if len(text) == 64 else text


def _join(parts: Sequence[str]) -> str:
    return "; ".join(map(escape_latex, parts))
