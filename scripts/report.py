"""One self-contained page from reconstruction runs, FVD and IS results, and training runs."""

import datetime
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from common import machine
from common.cli import main
from common.config import Config
from common.files import check_output_file, write_text
from eval.report.page import render_page
from eval.results.collected_results import collect_results


@dataclass(frozen=True, kw_only=True)
class MakeReport(Config):
    """Put results side by side on one web page that needs no network and no other file."""

    results: list[str]
    """One flag for each result: a JSON file of eval_fvd, eval_is, ablate or chain, or a card of
    inspect_cache; a file (.jsonl) that commands added results to; or a folder of
    eval_reconstruction, of samples, of a training run or of records of stages. `label=` in front
    gives it a name."""
    out: str | None = None
    """The page, .html."""
    latex: str | None = None
    """File (.tex) for tables of the scores: rows of one protocol together, footnotes for what
    differs."""
    real: str | None = None
    """Folder of real clips with labels, such as shards, that stand beside the samples of their
    class. Default: samples alone."""
    title: str = "Results"
    """Its title."""
    summary: list[str] = field(default_factory=list)
    """Paragraphs under the title."""
    facts: dict[str, str] = field(default_factory=dict)
    """Key figures on cards: label to value; what follows a semicolon is the note below it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.results:
            raise ValueError("nothing to report: give --results")
        if not self.out and not self.latex:
            raise ValueError("nothing to write: give --out, --latex or both")
        check_output_file("out", self.out, suffix=".html")
        check_output_file("latex", self.latex, suffix=".tex")
        if self.out and Path(self.out).suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"out={self.out}: a page's name ends in .html")


def run(config: MakeReport) -> None:
    """Read everything, then write the page and the LaTeX file."""
    results = collect_results(config.results, config.real)
    if config.latex is not None:
        write_text(config.latex, results.latex)
        print(f"wrote {config.latex}")
    if config.out is None:
        return
    page = render_page(
        config.title,
        results.sections,
        opening=results.opening,
        summary=[
            *config.summary,
            "Rows in gray were published; all others were measured by the runs named below.",
        ],
        facts={
            label: (value.strip(), note.strip())
            for label, text in config.facts.items()
            for value, _, note in [text.partition(";")]
        },
        provenance={
            "results": json.dumps(config.results),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": "; ".join([*machine.system(), *machine.devices()]),
            "command": shlex.join(["python", *sys.argv]),
        },
    )
    write_text(config.out, page)
    print(f"wrote {config.out}")


if __name__ == "__main__":
    main(MakeReport, run)
