"""How well VAEs reconstruct held-out clips, beside trivial baselines and the paper's numbers."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.accelerator import make_accelerator
from common.cli import main
from common.files import write_json
from common.output_folder import Input, lock_folder, remove_temporary, write_identity
from eval.metrics.baselines import trivial_reconstructions
from eval.protocols.evaluate_reconstruction import (
    ReconstructionConfig,
    evaluate_reconstruction,
    measure_cost,
)
from eval.protocols.measurement import add_result, check_out
from eval.report.tables import to_text
from eval.results.reconstruction_tables import reconstruction_tables, write_clips, write_tables
from vae.comparators.base import InferenceWindows
from vae.complexity import describe_vae
from vae.parts import vae_hash
from vae.registry import load_found, named_sources


@dataclass(frozen=True, kw_only=True)
class EvalReconstruction(ReconstructionConfig):
    """Reconstruct clips with VAEs and measure quality and cost, beside trivial baselines.

    Writes metrics.json, tables.md, tables.tex, one CSV file per table and clips.csv, each clip's
    scores. The paper's numbers stand in gray beside the measured ones; they were measured on other
    clips.
    """

    vae: list[str]
    """VAEs, one flag each: a folder or hub id of ours, or another's as name:path, such as
    cogvideox:THUDM/CogVideoX-2b. `label=...` before it names its row. Of several, those whose
    weights are not found get rows that say what to put where, and no number."""
    windows: InferenceWindows = "official"
    """Run VAEs of others in the windows of their authors' inference, or in a single one for the
    whole clip, which changes the result of most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.vae:
            raise ValueError("vae=[] must name at least one VAE to measure")


def run(config: EvalReconstruction) -> dict[str, Any]:
    """Check, measure, write; returns what metrics.json holds."""
    check_out(config)
    with lock_folder(config.out):
        return _run(config)


def _run(config: EvalReconstruction) -> dict[str, Any]:
    accelerator, out = make_accelerator(), Path(config.out)
    device = accelerator.device if config.device == "auto" else torch.device(config.device)
    sources = named_sources(config.vae, taken=("source",))
    vaes, missing = load_found(sources, windows=config.windows)
    clips = config.clips()
    for label, vae in vaes.items():
        vae.to(device).eval()
        try:
            for size in filter(None, ((config.frames, *clips.size), config.cost_size)):
                vae.config.latent_shape(*size)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
    networks = config.load(len(clips), config.frames, *clips.size)
    methods = {label: vae.reconstruct for label, vae in vaes.items()}
    if config.baselines:
        spatial = next(iter(vaes.values())).config.spatial_ratio
        methods |= trivial_reconstructions(temporal=config.group, spatial=spatial)
    write_identity(
        out,
        {"group": config.group, "baselines": config.baselines},
        {
            "data": Input(config.data, clips.content()),
            **{label: Input(sources[label], vae_hash(vae)) for label, vae in vaes.items()},
        },
        products=("source", "metrics.json"),
    )
    for name in ("source", *methods):
        remove_temporary(out / name)
    result, by_clip = evaluate_reconstruction(config, clips, methods, networks, device)
    described = {}
    for label, vae in vaes.items():
        cost = measure_cost(config, vae.encode, vae.decode, device)
        described[label] = {"source": sources[label], **describe_vae(vae), "cost": cost}
    result["methods"] = {name: described.get(name, {}) for name in methods}
    result["missing"] = missing
    write_json(out / "metrics.json", result)
    write_tables(reconstruction_tables(result), out)
    write_clips(clips.ids, by_clip, out / "clips.csv")
    add_result(config, result, config.out)
    return result


def report(result: dict[str, Any]) -> str:
    """The tables for the terminal."""
    tables = reconstruction_tables(result).values()
    return "\n\n".join(to_text(table, color=sys.stdout.isatty()) for table in tables)


if __name__ == "__main__":
    main(EvalReconstruction, lambda config: print(report(run(config))))
