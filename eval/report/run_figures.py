"""Figures of what eval_reconstruction and sample.py wrote."""

from collections.abc import Sequence
from pathlib import Path

from common.config import differences
from common.files import read_json
from data.video.decode import read_frames
from data.video.encode import to_uint8
from data.video.probe import probe
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.protocols.published import POSITIONS, PUBLISHED
from eval.report import plots

SAME = ("frames", "stride", "size", "clips", "group", "content")
"""What runs must have in common to stand in one figure."""


def comparison(
    folder: Path,
    clip: str,
    methods: Sequence[str],
    frames: Sequence[int],
    box: tuple[int, int, int, int] | None = None,
    gain: float | None = None,
) -> plots.Figure:
    """A saved clip of a run by several methods, every one if none is named (see
    `plots.comparison`); the box is the middle quarter if none is given.

    Raises:
        ValueError: no such method or clip.
    """
    known = list(read_json(folder / "metrics.json")["metrics"])
    methods = methods or known
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise ValueError(f"{folder}: no method {unknown[0]!r}; there are {', '.join(known)}")
    clips = {}
    for name in ("source", *methods):
        file = folder / name / f"{clip}.mkv"
        if not file.is_file():
            raise ValueError(f"{file}: no such clip. eval_reconstruction --save_clips writes more.")
        clips[name] = read_frames(file, range(probe(file).frames))
    h, w = clips["source"].shape[1:3]
    box = box or (h * 3 // 8, w * 3 // 8, h // 4, w // 4)
    return plots.comparison(clips, frames, box, gain)


def positions(runs: Sequence[str]) -> plots.Figure:
    """SSIM by position of every method of the runs, beside the published ones."""
    curves = {name: scores["ssim_by_position"]["positions"] for name, scores, _ in _methods(runs)}
    published = {
        f"{row.method} ({row.table})": [row.values[name] for name in POSITIONS[:-1]]
        for row in PUBLISHED
        if "margin" in row.values
    }
    return plots.positions(curves, published)


def preservation(runs: Sequence[str], pixels: str) -> plots.Figure:
    """Information preservation of every VAE of the runs, with `pixels` in [-1,1] or [0,1].

    Raises:
        ValueError: no VAE, or runs that do not compare.
    """
    points = {
        name: (method["config"]["z_dim"], scores["information_preservation"][pixels])
        for name, scores, method in _methods(runs)
        if method and pixels in scores["information_preservation"]
    }
    if not points:
        raise ValueError(f"{', '.join(runs)}: no VAE with pixels={pixels}; use [-1,1] or [0,1]")
    return plots.preservation(points, pixels)


def samples(folders: Sequence[str], num_clips: int, wanted: Sequence[int]) -> plots.Figure:
    """Frames of the first clips of each folder, one clip per row."""
    rows = {}
    for folder in folders:
        protocol = ClipProtocol(frames=max(wanted) + 1, start="first", num_clips=num_clips)
        source = ClipSource(folder, protocol, generated=True)
        for id, clip in (source[i] for i in range(len(source))):
            frames = to_uint8(clip)
            rows[f"{Path(folder).name}/{id}"] = [frames[i] for i in wanted]
    return plots.picture_grid(rows, [f"frame {i}" for i in wanted])


def _methods(runs: Sequence[str]) -> list[tuple[str, dict, dict]]:
    """Name, scores and description of every method of the runs; names tell the run if several."""
    found = []
    results = {run: read_json(Path(run) / "metrics.json") for run in runs}
    for run, result in results.items():
        first, other = (results[r]["protocol"] for r in (runs[0], run))
        if changes := [c for k in SAME for c in differences(first.get(k), other.get(k), name=k)]:
            raise ValueError(
                f"{run} and {runs[0]} do not compare: {'; '.join(changes)}. Measure all on one set "
                "of clips by one protocol."
            )
        for name, scores in result["metrics"].items():
            label = name if len(runs) == 1 else f"{Path(run).name}: {name}"
            found.append((label, scores, result["methods"][name]))
    return found
