"""UCF-101: 13,320 clips of 101 actions, with three splits made so that groups stay together."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.files import printable
from data.importers.base import (
    Importer,
    ImportResult,
    by_id,
    files_in,
    find_root,
    normalized,
    not_found,
    plain,
    some,
    split_folders,
    subfolders,
)
from data.importers.files import read_lines, videos_below
from data.video.video_record import VideoRecord

NAME = re.compile(r"v_.+_g\d+_c\d+\.\w+", re.IGNORECASE)
LISTS = "ucfTrainTestlist"
EXPECTED = "a folder with one folder for each class, such as ApplyEyeMakeup/v_ApplyEyeMakeup_*.avi"


@dataclass(frozen=True, kw_only=True)
class UCF101(Importer):
    """Pack UCF-101; a video's class is its folder, its split comes from the official lists."""

    root: Path
    """Folder of the class folders, which may lie in train/ and test/."""
    split: Literal["all", "train", "test"] = "train"
    """Which videos; `all` is what FVD is usually measured against."""
    split_index: Literal[1, 2, 3] = 1
    """Which of the three official splits."""
    annotations: Path | None = None
    """Folder of trainlist01.txt, testlist01.txt, classInd.txt; by default the ucfTrainTestlist in
    or beside root."""

    def scan(self) -> ImportResult:
        """Take the class from the folder and the split from the lists; lists may be absent where
        the split is `all` or there are folders train/ and test/."""
        root, notes = find_root(self.root, lambda folder: bool(_classes(folder)), EXPECTED)
        if root is None:
            raise not_found(self.root, EXPECTED)
        lists = self._lists(root)
        split_by_folder = lists is None and self.split != "all"
        folders = _classes(root)
        if split_by_folder:
            folders = [f for part in split_folders(root, self.split) for f in _classes(part)]
        if not folders:
            raise ValueError(
                f"{root}: split={self.split} needs the official lists. Put {LISTS}/ into {root} "
                "or beside it, or give annotations; or use split=all."
            )
        videos, more = videos_below(*folders)
        notes += more
        paths = [path for path in videos if NAME.fullmatch(path.name)]
        files, copies = by_id(paths, lambda path: plain(path.stem))
        names = _class_names(lists, [path.parent.name for path in files.values()])
        notes += copies
        if lists is None:
            place = "folders train/ and test/" if split_by_folder else "all videos found"
            notes.append(
                f"no {LISTS}: {place} decide, and nothing tells whether videos are missing"
            )
            return ImportResult(_records(files, names, set(files)), names, notes=notes)
        listed = {part: self._listed(lists, part) for part in ("train", "test")}
        every = listed["train"] | listed["test"]
        wanted = every if self.split == "all" else listed[self.split]
        keys = {id.casefold(): id for id in files}
        unlabeled = [printable(path) for id, path in files.items() if id.casefold() not in every]
        take = {id for key, id in keys.items() if key in wanted or (self.split == "all")}
        missing = sorted(wanted[key] for key in wanted.keys() - keys.keys())
        return ImportResult(_records(files, names, take), names, missing, unlabeled, notes)

    def _lists(self, root: Path) -> Path | None:
        if self.annotations is not None:
            return self.annotations
        places = (self.root, root, *root.resolve().parents[:2])
        return next((p / LISTS for p in places if (p / LISTS).is_dir()), None)

    def _listed(self, lists: Path, part: str) -> dict[str, str]:
        """Lines of a list, `Class/file.avi` and perhaps a label, by id in lower case."""
        path = lists / f"{part}list{self.split_index:02d}.txt"
        if not path.exists():
            raise ValueError(f"{path}: no such file; annotations is the folder of the lists")
        lines = [line.split()[0].replace("\\", "/") for line in read_lines(path)]
        return {plain(Path(line).stem).casefold(): line for line in lines}


def _classes(root: Path) -> list[Path]:
    """Class folders in `root`, or in train/ and test/ there."""
    places = [root, *split_folders(root, "all")]
    return [
        folder
        for place in places
        for folder in subfolders(place)
        if any(NAME.fullmatch(path.name) for path in files_in(folder))
    ]


def _class_names(lists: Path | None, folders: list[str]) -> list[str]:
    """From classInd.txt, whose order gives the labels; else the sorted folder names."""
    index = None if lists is None else lists / "classInd.txt"
    if index is None or not index.exists():
        return sorted(set(folders))
    rows = [line.split(maxsplit=1) for line in read_lines(index)]
    if any(len(row) != 2 or not row[0].isdigit() for row in rows):
        raise ValueError(f"{index}: lines must be a number and a class name, 1 ApplyEyeMakeup")
    names = [name for _, name in sorted((int(number), name) for number, name in rows)]
    known = {normalized(name) for name in names}
    if strange := sorted({name for name in folders if normalized(name) not in known}):
        raise ValueError(f"{index}: does not name the classes of the folders {some(strange)}")
    return names


def _records(files: dict[str, Path], names: list[str], take: set[str]) -> list[VideoRecord]:
    label_of = {normalized(name): label for label, name in enumerate(names)}
    return [
        VideoRecord(id, path, label_of[normalized(path.parent.name)])
        for id, path in sorted(files.items())
        if id in take
    ]
