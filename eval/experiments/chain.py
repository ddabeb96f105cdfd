"""From VAEs to a generator's score, on one budget: VAE, latents, card, Latte, samples, distance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen
from scipy.stats import spearmanr

from common.config import Config
from common.files import read_json, read_options, write_json, write_text
from common.stages import CommandStages
from eval.report.tables import to_markdown
from eval.results.experiment_tables import chain_tables

LEAST_ROWS = 3
"""From which on a rank correlation is computed."""


@dataclass(frozen=True, kw_only=True)
class Row(Config):
    """A VAE: trained here, or given."""

    name: str
    """Of its folder and in tables."""
    train: Path | None = None
    """Config of train_vae.py, trained once for each seed."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of train_vae.py that overrule it, such as architecture: baseline, or
    regularizers.local_correlation: "{}"."""
    vae: str | None = None
    """Or a VAE that is there: an export, or another's as name:where. Its latents are the same for
    all seeds, which then are of the generator alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name != Path(self.name).name or self.name.startswith("."):
            raise ValueError(f"row {self.name!r}: not a valid file name (no /, no leading dot)")
        if (self.train is None) == (self.vae is None):
            raise ValueError(f"row {self.name!r}: give either train or vae")
        if self.options and self.train is None:
            raise ValueError(f"row {self.name!r}: options are those of train, which is not given")
        for option in ("train.seed", "train.folder", "dry_run"):
            if option in self.options:
                raise ValueError(
                    f"row {self.name!r}: {option} is set by chain.py; remove it from options"
                )


@dataclass(frozen=True, kw_only=True)
class ChainConfig(Config):
    """Which VAEs, and by which configs each stage runs."""

    folder: Path
    """Folder of all stages, chain.json and chain.md."""
    rows: Annotated[tuple[Row, ...], MinLen(1)]
    """The VAEs."""
    seeds: Annotated[tuple[int, ...], MinLen(1)] = (0, 1, 2)
    """Of weights, data order and noise of VAE and Latte, and of the samples."""
    latents: Path
    """Config of cache_latents.py, with its data; vae and out are set here."""
    card: Path
    """Config of inspect_cache.py for the card; it may say `denoiser: {steps: 400}`."""
    latte: Path
    """Config of train_latte.py; latents, seed and folder are set here."""
    samples: Path
    """Config of sample.py; latte, vae, seed and out are set here."""
    score: Path
    """Config of eval_fvd.py, with the real clips; fake and out are set here."""
    inception: Path | None = None
    """Config of eval_is.py, which also tells the share of clips whose class is recognized; fake and
    out are set here."""
    classifier: Path | None = None
    """Config of train_classifier.py, run once: its features then take the place of I3D."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [row.name for row in self.rows]
        for values, what in ((names, "rows"), (self.seeds, "seeds")):
            if len(set(values)) < len(values):
                raise ValueError(f"{what}={values}: contains duplicates")
        files = (self.latents, self.card, self.latte, self.samples, self.score)
        files += (self.inception, self.classifier)
        for path in (*files, *(row.train for row in self.rows)):
            if path is not None and not path.is_file():
                raise ValueError(f"{path}: no such config file")
        if "data" not in self.clips:
            raise ValueError(f"{self.latents}: needs data, the clips to encode")

    @property
    def clips(self) -> Mapping[str, Any]:
        """The config of cache_latents.py."""
        return read_options(self.latents)


def run_chain(config: ChainConfig, commands: CommandStages) -> dict[str, Any]:
    """Run what is missing, seed by seed, and write chain.json and chain.md after every row.

    Returns: the result, of what is done.
    """
    # A step of every VAE that is to be trained, so that a mistake is told before the first run
    for row in config.rows:
        if row.train is not None:
            options = {**row.options, "train.folder": config.folder / row.name, "dry_run": True}
            record = config.folder / "checks" / f"{row.name}.json"
            commands.run(record, "train_vae.py", options, config=row.train)
    classifier: dict[str, Path] = {}
    if config.classifier is not None:
        folder = config.folder / "classifier"
        options = {"train.folder": folder}
        record = config.folder / "checks" / "classifier.json"
        commands.run(record, "train_classifier.py", options, config=config.classifier)
        classifier = {"classifier": folder / "export"}

    cells: dict[str, dict[str, Any]] = {row.name: {} for row in config.rows}
    result: dict[str, Any] = {}
    for seed in config.seeds:
        for row in config.rows:
            cells[row.name][str(seed)] = _cell(config, row, seed, commands, classifier)
            done = {name: list(of.values()) for name, of in cells.items() if of}
            result = {"kind": "chain", "cells": cells, "correlations": rank_correlations(done)}
            write_json(config.folder / "chain.json", result)
            tables = "\n".join(map(to_markdown, chain_tables(result)))
            write_text(config.folder / "chain.md", tables)
    return result


def _cell(
    config: ChainConfig,
    row: Row,
    seed: int,
    commands: CommandStages,
    classifier: Mapping[str, Path],
) -> dict[str, Any]:
    """All stages of a row and a seed: the measures of its card, the score, the time of each."""
    folder = config.folder / row.name / f"seed-{seed}"
    shared = folder if row.vae is None else config.folder / row.name  # what no seed changes
    seconds: dict[str, float] = {}

    def stage(of: Path, name: str, script: str, file: Path, **options: Any) -> None:
        record = of / "stages" / f"{name}.json"
        seconds[name] = commands.run(record, script, options, config=file)["seconds"]

    # VAE
    vae = str(row.vae)
    if row.train is not None:
        given: dict[str, Any] = {**row.options, "train.seed": seed, "train.folder": folder / "vae"}
        stage(folder, "vae", "train_vae.py", row.train, **given)
        vae = str(folder / "vae" / "export")

    # Latents and their card
    latents, card = shared / "latents", shared / "card.json"
    stage(shared, "latents", "cache_latents.py", config.latents, vae=vae, out=latents)
    sources = {"latents": latents, "vae": vae, "data": config.clips["data"]["folder"]}
    stage(
        shared, "card", "inspect_cache.py", config.card, card=card, out=shared / "look", **sources
    )

    # Latte, samples, distance
    options = {"train.seed": seed, "train.folder": folder / "latte", "latents": latents}
    stage(folder, "latte", "train_latte.py", config.latte, **options)
    options = {"latte": folder / "latte" / "export", "vae": vae, "seed": seed}
    stage(folder, "samples", "sample.py", config.samples, out=folder / "samples", **options)
    options = {"fake": folder / "samples", **classifier}
    stage(folder, "fvd", "eval_fvd.py", config.score, out=folder / "fvd.json", **options)
    score = read_json(folder / "fvd.json")
    inception = {}
    if config.inception is not None:
        stage(folder, "is", "eval_is.py", config.inception, out=folder / "is.json", **options)
        found = read_json(folder / "is.json")
        inception = {"is": found["value"]}
        if found["accuracy"] is not None:  # of a generator with classes
            inception["recognized"] = found["accuracy"]
    return {
        "measures": read_json(card)["measures"],
        "score": score["value"],
        "name": score["name"],
        **inception,
        "clips": score["fake"]["clips"],
        "seconds": seconds,
    }


def rank_correlations(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation over rows of each measure with the score, both means over seeds.

    Args:
        rows: name to the `measures` of the card and the generator's `score` of each seed; a lower
            score is better, so a measure that helps when it is high has a negative correlation.

    Returns: measure to `rho`, `p` (two-sided, by Student's t, rough for few rows) and `rows`. Left
        out: measures that fewer than three rows have, or that are equal in all of them.
    """
    found = {}
    for name in dict.fromkeys(n for row in rows.values() for seed in row for n in seed["measures"]):
        having = [row for row in rows.values() if all(name in seed["measures"] for seed in row)]
        values = [mean(seed["measures"][name] for seed in row) for row in having]
        scores = [mean(seed["score"] for seed in row) for row in having]
        if len(having) < LEAST_ROWS or not np.ptp(values) or not np.ptp(scores):
            continue
        ranks: Any = spearmanr(values, scores)
        found[name] = {"rho": float(ranks.statistic), "p": float(ranks.pvalue), "rows": len(having)}
    return found
