"""Results of commands, read from the paths that a user names and sorted by what shows them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import read_json
from eval.protocols.measurement import read_results
from eval.report.items import Gallery, Item, Section
from eval.results import result_sections as sections
from eval.results.diffusability_tables import diffusability_section
from eval.results.experiment_tables import ablation_section, chain_section
from eval.results.latex import Labeled, results_latex
from eval.results.memorization_section import memorization_section

EXPERIMENTS = {"ablation": ablation_section, "chain": chain_section}
"""Kinds of results that are a section each."""
INTRO = "Results of different protocols, weights or reference clips are in different tables."


@dataclass(frozen=True)
class CollectedResults:
    """What the page and the LaTeX tables show."""

    scores: list[Labeled] = field(default_factory=list)
    """Of eval_fvd and eval_is."""
    reconstructions: list[tuple[str, Path, dict[str, Any]]] = field(default_factory=list)
    """Label, folder and result of eval_reconstruction."""
    samples: list[Gallery] = field(default_factory=list)
    """Generated clips."""
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Cards of inspect_cache."""
    experiments: list[Section] = field(default_factory=list)
    """Ablations and chains."""
    trainings: list[Section] = field(default_factory=list)
    """Logs of training runs."""
    costs: list[Section] = field(default_factory=list)
    """Time and memory of stages."""

    @property
    def opening(self) -> Gallery | None:
        """What the page opens with: the first samples."""
        return self.samples[0] if self.samples else None

    @property
    def sections(self) -> list[Section]:
        """Of the page, below its opening."""
        tables: list[Item] = [
            *sections.score_tables(self.scores),
            *(sections.diagnosis_table(*each) for each in self.scores if each[1].get("diagnosis")),
            *self.samples[1:],
        ]
        intro = [INTRO] if self.scores else []
        return [
            *([Section(title="Generation", items=tables, intro=intro)] if tables else []),
            *(memorization_section(*each) for each in self.scores if each[1].get("memorization")),
            *(sections.reconstruction_section(*each) for each in self.reconstructions),
            *([diffusability_section(self.cards)] if self.cards else []),
            *self.experiments,
            *self.trainings,
            *self.costs,
        ]

    @property
    def latex(self) -> str:
        """Tables of the scores."""
        reconstructed = [(label, result) for label, _, result in self.reconstructions]
        return results_latex(self.scores, reconstructed)


def collect_results(given: Sequence[str], real: str | None = None) -> CollectedResults:
    """Read all results that are given, as `path` or `label=path`.

    Args:
        given: files and folders that commands write.
        real: folder of real clips, which stand beside samples of their class.

    Raises:
        ValueError: nothing there that can be shown, or two results of one kind and name.
    """
    collected, taken = CollectedResults(), set()
    for label, path, result in _named_results(given):
        kind = result.get("kind", "run")
        if (label, kind) in taken:
            raise ValueError(f"two results are called {label}: give them names, as in label=path")
        taken.add((label, kind))
        if kind in EXPERIMENTS:
            collected.experiments.append(EXPERIMENTS[kind](label, result))
        elif kind == "diffusability":
            collected.cards[label] = result
        elif kind == "reconstruction":
            collected.reconstructions.append((label, path, result))
        elif result:
            collected.scores.append((label, result))
        elif (path / "log.jsonl").is_file():
            collected.trainings.append(sections.training_section(label, path))
        elif sections.is_stages(path):
            collected.costs.append(sections.cost_section(label, path))
        elif (path / "samples.json").is_file():
            collected.samples.append(sections.samples_gallery(label, path, real))
        else:
            raise ValueError(
                f"{path}: no JSON file, no metrics.json of eval_reconstruction, no log.jsonl of a "
                "training run, no samples.json and no records of stages"
            )
    return collected


def _named_results(given: Sequence[str]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Name, path and, of what a command measured, the result; of a results log each line."""
    for text in given:
        label, equals, name = text.partition("=")
        path = Path(name if equals else text)
        label = label if equals else path.stem
        if path.suffix == ".jsonl":
            records = read_results(path)
            seen: Counter[tuple[str, str]] = Counter()
            for record in records:
                name, kind = record["label"], record["kind"]
                seen[name, kind] += 1
                again = f" ({seen[name, kind]})" if seen[name, kind] > 1 else ""
                yield name + again, path.parent, record
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
