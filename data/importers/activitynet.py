"""ActivityNet 1.3: videos of some minutes, in which stretches of time are annotated."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.files import read_json
from data.importers.base import (
    SPLITS,
    Importer,
    ImportResult,
    Split,
    by_id,
    listing,
    not_found,
    some,
)
from data.importers.files import videos_below
from data.video.decode_errors import printable
from data.video.video_record import VideoRecord

NAME = re.compile(r"(?:v_)?([\w-]{11})")
EXPECTED = "videos named v_<id>.mp4, .mkv or .webm, at any depth"


@dataclass(frozen=True, kw_only=True)
class ActivityNet(Importer):
    """Pack ActivityNet 1.3: the annotated stretches of its videos, or the videos whole."""

    root: Path
    """Folder below which the videos of all archives lie, in any folders."""
    split: Split = "train"
    """Which videos."""
    annotations: Path | None = None
    """JSON file with the database; by default the one such file in root."""
    parts: Literal["annotated", "whole"] = "annotated"
    """Each annotated stretch as a video with its class, or whole videos of several minutes without
    one. Only these stretches are decoded. Videos without annotations (test) are taken whole."""

    def scan(self) -> ImportResult:
        """Match files and the database by id."""
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder; expected {EXPECTED}")
        paths, passed = videos_below(self.root)
        named = [path for path in paths if NAME.fullmatch(path.stem)]
        if not named:
            raise not_found(self.root, EXPECTED)
        files, notes = by_id(named, _id)
        database = self._database()
        names = sorted({a["label"] for entry in database.values() for a in entry["annotations"]})
        wanted = {i: e for i, e in database.items() if e["subset"].casefold() in SPLITS[self.split]}
        missing = sorted(wanted.keys() - files.keys())
        unlabeled = sorted(printable(path) for id, path in files.items() if id not in database)
        unlabeled += [printable(path) for path in paths if not NAME.fullmatch(path.stem)]
        found = sorted(wanted.keys() & files.keys())
        if not found:
            raise ValueError(
                f"{self.root}: none of its {len(files)} videos belongs to split={self.split}; "
                f"{len(wanted)} are in the database, the first is {some(missing[:1])}"
            )
        records, odd = [], []
        for id in found:
            entry = wanted[id]
            if self.parts == "whole" or not entry["annotations"]:
                records.append(VideoRecord(f"v_{id}", files[id], None))
                continue
            for number, annotation in enumerate(entry["annotations"]):
                start, end = annotation["segment"]
                if not 0 <= start < end:
                    odd.append(f"{id} [{start}, {end}]")
                    continue
                label = names.index(annotation["label"])
                key = f"v_{id}-{number:03d}"
                records.append(VideoRecord(key, files[id], label, seconds=(start, end)))
        if odd:
            notes.append(f"empty stretches left out: {some(odd)}")
        classes = names if any(record.label is not None for record in records) else []
        return ImportResult(records, classes, missing, unlabeled, notes + passed)

    def _database(self) -> dict[str, dict[str, Any]]:
        path = self.annotations or self._search()
        content = read_json(path)
        if not (isinstance(content, dict) and isinstance(content.get("database"), dict)):
            raise ValueError(f"{path}: has no database; expected activity_net.v1-3.min.json")
        database = content["database"]
        for id, entry in database.items():
            try:
                well = isinstance(entry["subset"], str) and all(
                    isinstance(a["label"], str) and len(a["segment"]) == 2
                    for a in entry["annotations"]
                )
            except (KeyError, TypeError):
                well = False
            if not well:
                raise ValueError(f"{path}: {id} lacks a subset, or annotations with label, segment")
        return database

    def _search(self) -> Path:
        places = (self.root, self.root.resolve().parent)
        found = [file for place in places for file in sorted(place.glob("*.json"))]
        found = [file for file in found if "activity" in file.name.casefold()] or found
        if len(found) != 1:
            raise ValueError(
                f"{self.root}: {len(found)} json files in it or beside it, one is needed: "
                "activity_net.v1-3.min.json. Put it there or give annotations; found "
                f"{listing(self.root)}"
            )
        return found[0]


def _id(path: Path) -> str:
    name = NAME.fullmatch(path.stem)
    assert name is not None
    return name.group(1)
