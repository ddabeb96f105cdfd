"""The page's section on copies: clips beside the training clips nearest to them, and how near."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8

from data.video.transforms import fit
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.labels import Labels, read_labels
from eval.clips.source import CLIP_FIELDS
from eval.clips.video_stores import open_store
from eval.report.items import Cell, Column, Comparison, Gallery, Item, Section, Table

PAIRS = 2  # of each class that are shown
GONE = "The clips cannot be shown: "


def memorization_section(label: str, result: Mapping[str, Any]) -> Section:
    """The generated clips that lie nearest to a training clip, each beside it, where the videos of
    both are still there; the distances in a table. With `nearest`, all of them and held-out clips.
    """
    found = result["memorization"]
    intro = [
        f"{found['share']:.1%} of the generated clips are nearer to a training clip than "
        f"{found['threshold']:.4g}. Of {found['clips_held_out']} real clips that were not trained "
        f"on, {found['level']:.1%} are. A model that copies lies far above them."
    ]
    if nearest := found.get("nearest"):
        intro.append(
            f"Below, each clip stands beside the nearest of {nearest['clips']} training clips, "
            f"which begin every {nearest['stride']} frames in all training videos. The difference "
            "is the root mean square over all pixels, of 255 gray levels."
        )
        items = _nearest_items(label, result, nearest)
    else:
        items = _worst_items(label, result)
    return Section(title=f"Memorized? {label}", intro=intro, items=items)


def _worst_items(label: str, result: Mapping[str, Any]) -> list[Item]:
    found = result["memorization"]
    pairs = found["worst"]
    items: list[Item] = []
    notes = ["Distances are those of the features that the score compares."]
    try:
        generated = _recorded_clips(result["fake"], [pair["generated"] for pair in pairs])
        size = generated[0].shape[1], generated[0].shape[2]
        training = _recorded_clips(result["real"], [pair["training"] for pair in pairs], size)
    except (ValueError, OSError) as error:
        notes.append(f"{GONE}{error}")
    else:
        items = [
            Comparison(
                title=f"{pair['generated']} and the training clip nearest to it",
                caption=f"{pair['training']}, at a distance of {pair['distance']:.4g}; "
                f"{found['threshold']:.4g} is near.",
                clips={"generated": made, "nearest training clip": trained},
                scores={"distance": pair["distance"]},
            )
            for pair, made, trained in zip(pairs, generated, training, strict=True)
        ]
    table = Table(
        title=f"Nearest training clips: {label}",
        columns=["generated", "training", Column(name="distance")],
        rows=[[pair["generated"], pair["training"], pair["distance"]] for pair in pairs],
        notes=notes,
    )
    return [table, *items]


def _nearest_items(label: str, result: Mapping[str, Any], nearest: Mapping[str, Any]) -> list[Item]:
    names = {"generated": label, "held_out": "held-out clips"}
    summary = Table(
        title=f"Nearest training clips: {label}",
        columns=[
            "clips",
            Column(name="median difference", unit="gray levels", decimals=1),
            Column(name="median distance of features", decimals=3),
            "number",
        ],
        rows=[
            [
                name,
                nearest[key]["median_gray_levels"],
                nearest[key]["median_distance"],
                len(nearest[key]["pairs"]),
            ]
            for key, name in names.items()
        ],
    )
    items: list[Item] = [summary]
    for key, name in names.items():
        source = nearest[key]["source"]
        known = read_labels(Path(source["folder"]))
        pairs = sorted(nearest[key]["pairs"], key=lambda pair: pair["gray_levels"])
        by_class: dict[str, list[dict[str, Any]]] = {}
        for pair in pairs:
            by_class.setdefault(_class_name(known, pair["clip"]), []).append(pair)
        try:
            clips = {
                class_name: [
                    clip
                    for pair in group[:PAIRS]
                    for clip in (
                        *_recorded_clips(source, [pair["clip"]]),
                        *_training_clip(result["real"], *pair["by_pixels"]),
                    )
                ]
                for class_name, group in sorted(by_class.items())
            }
        except (ValueError, OSError) as error:
            notes = [f"{GONE}{error}"]
        else:
            notes = []
            title, headings = f"Nearest by pixels: {name}", ["clip", "nearest"] * PAIRS
            items.append(Gallery(title=title, clips=clips, headings=headings))
        rows: list[list[Cell]] = [
            [
                pair["clip"],
                _class_name(known, pair["clip"]),
                pair["gray_levels"],
                "{} from frame {}".format(*pair["by_pixels"]),
                pair["distance"],
                "{} from frame {}".format(*pair["by_features"]),
            ]
            for pair in pairs
        ]
        columns: list[str | Column] = [
            "clip",
            "class",
            Column(name="difference", unit="gray levels", decimals=1),
            "nearest by pixels",
            Column(name="distance of features", decimals=3),
            "nearest by features",
        ]
        items.append(Table(title=f"One by one: {name}", columns=columns, rows=rows, notes=notes))
    return items


def _training_clip(record: Mapping[str, Any], id: str, start: int) -> list[Any]:
    return _recorded_clips({**record, "start": "first", "skip": start}, [id])


def _class_name(known: Labels | None, id: str) -> str:
    return known.class_names[known.labels[id]] if known and id in known.labels else "all"


def _recorded_clips(
    record: Mapping[str, Any], ids: Sequence[str], size: tuple[int, int] | None = None
) -> list[UInt8[np.ndarray, "t h w 3"]]:
    """Clips of an earlier evaluation, read once more, to be looked at.

    Args:
        record: what `ClipSource.describe` gave.
        ids: of the clips.
        size: height and width, pixels; None takes those that were evaluated.

    Raises:
        ValueError: the videos are no longer there, or cannot be read.
    """
    protocol = ClipProtocol(**{name: record[name] for name in CLIP_FIELDS})
    store = open_store(Path(record["folder"]))
    if missing := {*ids} - {*store.ids()}:
        raise ValueError(f"{record['folder']}: has no {min(missing)} any more")
    clips = []
    for id in ids:
        start = protocol.first_frame(id, store.video(id).frames)
        frames = store.read(id, protocol.indices(start))
        height, width = size or (protocol.height, protocol.width)
        if height is None or width is None:
            height, width = frames.shape[1:3]
        sized = fit(torch.from_numpy(np.array(frames)), height, width)  # c t h w
        clips.append(rearrange(sized, "c t h w -> t h w c").numpy())
    return clips
