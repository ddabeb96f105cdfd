"""Sets of YouTube videos, named by the 11 characters of their ids: Kinetics and ActivityNet."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.files import printable, read_json
from data.importers.base import (
    SPLITS,
    Importer,
    ImportResult,
    Split,
    by_id,
    files_in,
    find_root,
    listing,
    normalized,
    not_found,
    read_lines,
    read_table,
    some,
    split_folders,
)
from data.importers.folders import extension, videos_below
from data.video.video_record import VideoRecord

KINETICS_ID = re.compile(r"[\w-]{11}")
"""Ids contain `_` and `-`, so names are cut at the eleventh character, not at a `_`."""
REPLACEMENT = "replacement"


@dataclass(frozen=True, kw_only=True)
class Kinetics400(Importer):
    """Pack Kinetics-400; annotations and files are matched by id, both differences reported."""

    root: Path
    """Folder of train/, val/ and test/, which hold <id>_<start>_<end>.mp4 or class folders."""
    split: Split = "train"
    """Which videos."""
    annotations: Path | None = None
    """File or folder of the annotations (csv or txt); by default annotations/ in root, and files
    named after the split in root."""
    unlabeled: Literal["skip", "keep"] = "skip"
    """Files that the annotations do not name: left out, or packed without a class."""

    def scan(self) -> ImportResult:
        """Match files and annotations by id; videos in replacement/ take the place of others."""
        # Files by id
        root, notes = self._find()
        tops = split_folders(root, self.split) or [root]
        instead = [folder for folder in (root / REPLACEMENT,) if folder.is_dir()]
        videos, more = videos_below(*tops, *instead)
        notes += more
        replacements = [path for path in videos if _is_replacement(path, root)]
        paths = sorted({*videos} - {*replacements})
        odd = [printable(path) for path in paths if not KINETICS_ID.match(path.stem)]
        files, copies = by_id((p for p in paths if KINETICS_ID.match(p.stem)), _kinetics_id)
        notes += copies
        better = {_kinetics_id(path): path for path in replacements}
        if used := sorted(better.keys() & files.keys()):
            notes.append(f"{len(used)} videos read from {REPLACEMENT}: {some(used)}")

        # Annotations by id
        annotated = self._annotated(root)
        if annotated is None:
            notes.append("no annotations: classes from folders, and nothing tells what is missing")
        wanted, names = annotated or (dict.fromkeys(files), [])
        files |= {id: path for id, path in better.items() if id in files or id in wanted}
        missing = sorted(wanted.keys() - files.keys())
        strange = sorted(printable(path) for id, path in files.items() if id not in wanted) + odd
        keep = {i: p for i, p in files.items() if i in wanted or self.unlabeled == "keep"}
        if annotated and not keep:
            raise ValueError(
                f"{root}: none of its {len(files)} videos is among the {len(wanted)} of the "
                f"annotations for {self.split}. They belong to another split or set."
            )

        # Classes: the annotations', or the folders that videos lie in below their split's
        folders = {
            id: path.parent.name
            for id, path in keep.items()
            if path.parent not in tops and not path.parent.name.startswith(REPLACEMENT)
        }
        class_of = wanted if names else folders
        names = names or _class_names(folders.values())
        label_of = {normalized(name): label for label, name in enumerate(names)}
        labels = {id: label_of[normalized(name)] for id in keep if (name := class_of.get(id))}
        other = [
            printable(keep[id])
            for id, folder in folders.items()
            if id in labels and label_of.get(normalized(folder), labels[id]) != labels[id]
        ]
        if other:
            notes.append(
                f"in the folder of another class than annotated, which counts: {some(other)}"
            )
        records = [VideoRecord(id, path, labels.get(id)) for id, path in sorted(keep.items())]
        return ImportResult(records, names, missing, strange, notes)

    def _find(self) -> tuple[Path, list[str]]:
        expected = f"a folder with {self.split}/, which holds <id>.mp4, <id>_*.mp4 or class folders"
        root, notes = find_root(
            self.root, lambda folder: bool(split_folders(folder, self.split)), expected
        )
        if root is not None:
            return root, notes
        others = split_folders(self.root, "all")
        if others or not any(KINETICS_ID.match(path.stem) for path in videos_below(self.root)[0]):
            raise not_found(self.root, expected)
        return self.root, [f"no folder {self.split}/: all videos below {self.root} are taken"]

    def _annotated(self, root: Path) -> tuple[dict[str, str | None], list[str]] | None:
        """Class of each id of the split, None without one; and the class names of all splits."""
        files = self._annotation_files(root)
        of_split = [file for file in files if _split_of(file) == self.split]
        of_split = of_split or [file for file in files if _split_of(file) is None]
        if not of_split:
            if self.annotations is not None:
                raise ValueError(
                    f"{self.annotations}: no csv or txt file for split={self.split}, such as "
                    f"{self.split}.csv; found {some(file.name for file in files) or 'none'}"
                )
            return None
        wanted: dict[str, str | None] = {}
        for file in of_split:
            for id, name in _read(file, self.split):
                wanted[id] = wanted.get(id) or name
        names = (name for file in files for _, name in _read(file, None) if name)
        return wanted, _class_names(names)

    def _annotation_files(self, root: Path) -> list[Path]:
        """Tables, and texts of other names than theirs."""
        given = self.annotations
        if given is not None and not given.exists():
            raise ValueError(f"{given}: no such file or folder of annotations")
        if given is not None and given.is_file():
            return [given]
        for folder in (root / "annotations", root) if given is None else (given,):
            files = [file for file in files_in(folder) if extension(file) in ("csv", "txt")]
            if given is None and folder == root:
                files = [file for file in files if _split_of(file) is not None]
            tables = {file.stem for file in files if extension(file) == "csv"}
            if files:
                return [f for f in files if extension(f) == "csv" or f.stem not in tables]
        return []


@dataclass(frozen=True, kw_only=True)
class Kinetics600(Kinetics400):
    """Pack Kinetics-600; its annotations are incomplete, so files without one are kept."""

    unlabeled: Literal["skip", "keep"] = "keep"
    """Files that the annotations do not name: left out, or packed without a class."""


def _kinetics_id(path: Path) -> str:
    return path.stem[:11]


def _is_replacement(path: Path, root: Path) -> bool:
    return any(
        part.casefold().startswith(REPLACEMENT) for part in path.relative_to(root).parts[:-1]
    )


def _split_of(file: Path) -> str | None:
    """The split that a file's name says it is about."""
    words = re.split(r"[^a-z]+", file.stem.casefold())
    return next((split for split, names in SPLITS.items() if set(names) & set(words)), None)


def _read(file: Path, split: str | None) -> Iterable[tuple[str, str | None]]:
    """(id, class) of each row; of one split, where the rows tell it."""
    if extension(file) != "csv":
        for line in read_lines(file):
            name, _, rest = line.replace(",", " ").partition(" ")
            if found := KINETICS_ID.match(Path(name).stem):
                yield found.group(), rest.strip() or None
        return
    for row in read_table(file, ("youtube_id",), optional=("label", "split")):
        if split is None or not row["split"] or row["split"].casefold() in SPLITS[split]:
            yield row["youtube_id"][:11], row["label"] or None


def _class_names(names: Iterable[str]) -> list[str]:
    """Sorted; of names that are alike but for case, blanks and punctuation the first."""
    by_form = {normalized(name): name for name in sorted(set(names), reverse=True)}
    return sorted(by_form.values())


ACTIVITYNET_NAME = re.compile(r"(?:v_)?[\w-]{11}")
ACTIVITYNET_EXPECTED = "videos named v_<id>.mp4, .mkv or .webm, at any depth"


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
            raise ValueError(f"{self.root}: no such folder; expected {ACTIVITYNET_EXPECTED}")
        paths, passed = videos_below(self.root)
        named = [path for path in paths if ACTIVITYNET_NAME.fullmatch(path.stem)]
        if not named:
            raise not_found(self.root, ACTIVITYNET_EXPECTED)
        files, notes = by_id(named, lambda path: path.stem[-11:])
        database = self._database()
        names = sorted({a["label"] for entry in database.values() for a in entry["annotations"]})
        wanted = {i: e for i, e in database.items() if e["subset"].casefold() in SPLITS[self.split]}
        missing = sorted(wanted.keys() - files.keys())
        unlabeled = sorted(printable(path) for id, path in files.items() if id not in database)
        unlabeled += [
            printable(path) for path in paths if not ACTIVITYNET_NAME.fullmatch(path.stem)
        ]
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
