"""One self-contained page from reconstruction runs, FVD and IS results, and training runs."""

import datetime
import importlib.metadata
import json
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.cli import main
from common.config import Config
from common.files import read_json
from eval.report import result_sections as sections
from eval.report.ablation_tables import ablation_section
from eval.report.page import Fact, Report, Section, build_report


@dataclass(frozen=True, kw_only=True)
class MakeReport(Config):
    """Put results side by side on one web page that needs no network and no other file."""

    results: list[str]
    """One flag for each result: a JSON file of eval_fvd, eval_is or ablate; or a folder of
    eval_reconstruction, of samples, of a training run or of records of stages. `label=` in front
    gives it a name."""
    out: str
    """The page, .html."""
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


def run(config: MakeReport) -> None:
    """Read everything, then write the page."""
    reconstructions, generated, memorized, ablations, trainings, costs = ([] for _ in range(6))
    scores: list[tuple[str, dict[str, Any]]] = []
    taken: set[tuple[str, str]] = set()
    for label, path in map(_named, config.results):
        kind = "run"
        if path.is_file():
            result = _result(path, ("fvd", "is", "ablation"))
            kind = result["kind"]
            if kind == "ablation":
                ablations.append(ablation_section(label, result))
            else:
                scores.append((label, result))
            if result.get("memorization"):
                memorized.append(sections.memorization_section(label, result))
        elif (path / "metrics.json").is_file():
            result = _result(path / "metrics.json", ("reconstruction",))
            reconstructions.append(sections.reconstruction_section(label, path, result))
        elif (path / "log.jsonl").is_file():
            trainings.append(sections.training_section(label, path))
        elif sections.is_stages(path):
            costs.append(sections.cost_section(label, path))
        elif (path / "samples.json").is_file():
            generated.append(sections.samples_gallery(label, path))
        else:
            raise ValueError(
                f"{path}: no JSON file, no metrics.json of eval_reconstruction, no log.jsonl of a "
                "training run, no samples.json and no records of stages"
            )
        if (label, kind) in taken:
            raise ValueError("two results have one name: give them names, as in label=path")
        taken.add((label, kind))
    items = [*sections.score_tables(scores), *generated]
    intro = "Results of different protocols, weights or reference clips are in different tables."
    page = Report(
        title=config.title,
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
            *reconstructions,
            *(
                [Section(title="Generation", items=items, intro=[intro] if scores else [])]
                if items
                else []
            ),
            *ablations,
            *memorized,
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


def _named(given: str) -> tuple[str, Path]:
    label, equals, path = given.partition("=")
    return (label, Path(path)) if equals else (Path(given).stem, Path(given))


def _result(path: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    result = read_json(path)
    if not isinstance(result, dict) or result.get("kind") not in kinds:
        raise ValueError(f"{path}: kind is not one of {', '.join(kinds)}")
    return result


if __name__ == "__main__":
    main(MakeReport, run)
