"""The class of each clip: what a real one shows, what a generated one was sampled for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.files import read_json, write_json
from data.shards.index import INDEX, ShardIndex

RECORD = "samples.json"
"""File beside generated clips that `scripts/sample.py` writes."""


class Labels(NamedTuple):
    """Labels of clips, by their ids in an evaluation."""

    labels: Mapping[str, int]
    """Those that are known."""
    class_names: Sequence[str]
    """Of all classes, in the order of the labels."""

    def all_of(self, ids: Sequence[str]) -> list[int] | None:
        """The label of each clip; None unless all are known, of at least two classes."""
        if len(self.class_names) < 2 or any(id not in self.labels for id in ids):
            return None
        return [self.labels[id] for id in ids]


def read_labels(folder: Path) -> Labels | None:
    """What the index of packed shards or samples.json beside clips records; None without either."""
    if (folder / INDEX).is_file():
        index = ShardIndex.load(folder)
        found = {entry.key: entry.label for entry in index.entries}
        names = index.class_names
    elif (folder / RECORD).is_file():
        record = read_json(folder / RECORD)
        found = {clip["file"]: clip["label"] for clip in record["clips"]}
        names = record["class_names"]
    else:
        return None
    known = {id: label for id, label in found.items() if label is not None and label >= 0}
    return Labels(known, list(names))


def seed_folders(folder: str) -> list[str]:
    """Folders of the sampling seeds below a folder, where `scripts/sample.py --seeds` has put each
    seed's clips; else the folder itself."""
    found = [record.parent for record in Path(folder).glob(f"seed-*/{RECORD}")]
    return [str(place) for place in sorted(found, key=lambda p: (len(p.name), p.name))] or [folder]


def write_labels(
    folder: Path,
    labels: Mapping[str, int | None],
    class_names: Sequence[str],
    continues: Mapping[str, str] | None = None,
    vae: Mapping[str, str] | None = None,
) -> None:
    """Record what the clips in `folder` were asked to show.

    Args:
        labels: by the clip's file; None of an unconditional model's.
        class_names: of all classes.
        continues: by the clip's file, the video whose first frames it goes on from.
        vae: what decoded them.
    """
    clips = [
        {
            "file": file,
            "label": label,
            "class_name": None if label is None else class_names[label],
            **({"continues": continues[file]} if continues else {}),
        }
        for file, label in labels.items()
    ]
    decoded_by = {"vae": dict(vae)} if vae else {}
    write_json(folder / RECORD, {"class_names": list(class_names), **decoded_by, "clips": clips})
