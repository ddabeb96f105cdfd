"""One self-contained page from reconstruction runs, FVD and IS results, and training runs."""

import datetime
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.cli import main
from common.config import Config
from common.files import atomic_path, check_output_file, read_json
from eval.experiments.tables import ablation_section, chain_section
from eval.protocols.measurement import read_results
from eval.report.page import Fact, Report, Section, build_report
from eval.results import result_sections as sections
from eval.results.diffusability_tables import diffusability_section
from eval.results.latex import Labeled, results_latex
from eval.results.memorization_section import memorization_section

EXPERIMENTS = {"ablation": ablation_section, "chain": chain_section}
"""Kinds of results that are a section each."""


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


def run(config: MakeReport) -> None:
    """Read everything, then write the page and the LaTeX file."""
    reconstructions, generated, experiments, trainings, costs = ([] for _ in range(5))
    scores: list[Labeled] = []
    reconstructed: list[Labeled] = []
    cards: dict[str, dict[str, Any]] = {}
    taken: set[tuple[str, str]] = set()
    for label, path, result in _named_results(config.results):
        kind = result.get("kind", "run")
        if (label, kind) in taken:
            raise ValueError(f"two results are called {label}: give them names, as in label=path")
        taken.add((label, kind))
        if kind in EXPERIMENTS:
            experiments.append(EXPERIMENTS[kind](label, result))
        elif kind == "diffusability":
            cards[label] = result
        elif kind == "reconstruction":
            reconstructed.append((label, result))
            reconstructions.append(sections.reconstruction_section(label, path, result))
        elif result:
            scores.append((label, result))
        elif (path / "log.jsonl").is_file():
            trainings.append(sections.training_section(label, path))
        elif sections.is_stages(path):
            costs.append(sections.cost_section(label, path))
        elif (path / "samples.json").is_file():
            generated.append(sections.samples_gallery(label, path, config.real))
        else:
            raise ValueError(
                f"{path}: no JSON file, no metrics.json of eval_reconstruction, no log.jsonl of a "
                "training run, no samples.json and no records of stages"
            )
    if config.latex is not None:
        with atomic_path(config.latex) as temporary:
            temporary.write_text(results_latex(scores, reconstructed), encoding="utf-8")
        print(f"wrote {config.latex}")
    if config.out is None:
        return
    opening, *others = generated or [None]
    diagnosed = [sections.diagnosis_table(*each) for each in scores if each[1].get("diagnosis")]
    items = [*sections.score_tables(scores), *diagnosed, *others]
    intro = "Results of different protocols, weights or reference clips are in different tables."
    page = Report(
        title=config.title,
        opening=opening,
        summary=[
            *config.summary,
            "Rows in gray were published; all others were measured by the runs named below.",
        ],
        facts=[
            Fact(label=label, value=value.strip(), note=note.strip())
            for label, (value, _, note) in (
                (label, text.partition(";")) for label, text in config.facts.items()
            )
        ],
        sections=[
            *(
                [Section(title="Generation", items=items, intro=[intro] if scores else [])]
                if items
                else []
            ),
            *(memorization_section(*each) for each in scores if each[1].get("memorization")),
            *reconstructions,
            *([diffusability_section(cards)] if cards else []),
            *experiments,
            *trainings,
            *costs,
        ],
        provenance={
            "results": json.dumps(config.results),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
            + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"),
            "Python, torch": f"{platform.python_version()}, {importlib.metadata.version('torch')}",
            "command": " ".join(["python", *sys.argv]),
        },
    )
    build_report(page, config.out)
    print(f"wrote {config.out}")


def _named_results(given: list[str]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Name, path and, of what a command measured, the result; of a results log each line."""
    for text in given:
        label, equals, name = text.partition("=")
        path = Path(name if equals else text)
        label = label if equals else path.stem
        if path.suffix == ".jsonl":
            records = read_results(path)
            names = [record["label"] for record in records]
            for i, record in enumerate(records):
                again = names[:i].count(names[i])
                yield f"{names[i]} ({again + 1})" if again else names[i], path.parent, record
        elif path.is_file():
            yield label, path, _result(path, "fvd", "is", "diffusability", *EXPERIMENTS)
        elif (path / "metrics.json").is_file():
            yield label, path, _result(path / "metrics.json", "reconstruction")
        else:
            yield label, path, {}


def _result(path: Path, *kinds: str) -> dict[str, Any]:
    result = read_json(path)
    if not isinstance(result, dict) or result.get("kind") not in kinds:
        raise ValueError(f"{path}: kind is not one of {', '.join(kinds)}")
    return result


if __name__ == "__main__":
    main(MakeReport, run)
