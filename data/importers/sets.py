"""Sets with folders or lists of their own: UCF-101, SkyTimelapse, FaceForensics, OpenVid."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.files import printable
from data.importers.base import (
    FrameRate,
    Importer,
    ImportResult,
    by_id,
    files_in,
    find_root,
    normalized,
    not_found,
    plain,
    read_lines,
    read_table,
    some,
    split_folders,
    subfolders,
)
from data.importers.folders import frame_records, frames_below, video_records, videos_below
from data.video.video_record import VideoRecord

UCF_NAME = re.compile(r"v_.+_g\d+_c\d+\.\w+", re.IGNORECASE)
UCF_LISTS = "ucfTrainTestlist"
UCF_EXPECTED = (
    "a folder with one folder for each class, such as ApplyEyeMakeup/v_ApplyEyeMakeup_*.avi"
)


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
        root, notes = find_root(
            self.root, lambda folder: bool(_ucf_class_folders(folder)), UCF_EXPECTED
        )
        if root is None:
            raise not_found(self.root, UCF_EXPECTED)
        lists = self._lists(root)
        split_by_folder = lists is None and self.split != "all"
        folders = _ucf_class_folders(root)
        if split_by_folder:
            folders = [
                f for part in split_folders(root, self.split) for f in _ucf_class_folders(part)
            ]
        if not folders:
            raise ValueError(
                f"{root}: split={self.split} needs the official lists. Put {UCF_LISTS}/ into "
                f"{root} or beside it, or give annotations; or use split=all."
            )
        videos, more = videos_below(*folders)
        paths = [path for path in videos if UCF_NAME.fullmatch(path.name)]
        files, copies = by_id(paths, lambda path: plain(path.stem))
        names = _ucf_class_names(lists, [path.parent.name for path in files.values()])
        notes += more + copies
        missing, unlabeled = [], []
        if lists is None:
            place = "folders train/ and test/" if split_by_folder else "all videos found"
            notes.append(
                f"no {UCF_LISTS}: {place} decide, and nothing tells whether videos are missing"
            )
        else:
            listed = {part: self._listed(lists, part) for part in ("train", "test")}
            every = listed["train"] | listed["test"]
            wanted = every if self.split == "all" else listed[self.split]
            there = {id.casefold() for id in files}
            missing = sorted(wanted[key] for key in wanted.keys() - there)
            unlabeled = [
                printable(file) for id, file in files.items() if id.casefold() not in every
            ]
            if self.split != "all":
                files = {id: file for id, file in files.items() if id.casefold() in wanted}
        label_of = {normalized(name): label for label, name in enumerate(names)}
        records = [
            VideoRecord(id, path, label_of[normalized(path.parent.name)])
            for id, path in sorted(files.items())
        ]
        return ImportResult(records, names, missing, unlabeled, notes)

    def _lists(self, root: Path) -> Path | None:
        if self.annotations is not None:
            return self.annotations
        places = (self.root, root, *root.resolve().parents[:2])
        return next((p / UCF_LISTS for p in places if (p / UCF_LISTS).is_dir()), None)

    def _listed(self, lists: Path, part: str) -> dict[str, str]:
        """Lines of a list, `Class/file.avi` and perhaps a label, by id in lower case."""
        path = lists / f"{part}list{self.split_index:02d}.txt"
        if not path.exists():
            raise ValueError(f"{path}: no such file; annotations is the folder of the lists")
        lines = [line.split()[0].replace("\\", "/") for line in read_lines(path)]
        return {plain(Path(line).stem).casefold(): line for line in lines}


def _ucf_class_folders(root: Path) -> list[Path]:
    """Class folders in `root`, or in train/ and test/ there."""
    places = [root, *split_folders(root, "all")]
    return [
        folder
        for place in places
        for folder in subfolders(place)
        if any(UCF_NAME.fullmatch(path.name) for path in files_in(folder))
    ]


def _ucf_class_names(lists: Path | None, folders: list[str]) -> list[str]:
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


SKY_EXPECTED = "a folder with sky_train/ and sky_test/, which hold <id>/<id>_<k>/*.jpg"


@dataclass(frozen=True, kw_only=True)
class SkyTimelapse(Importer):
    """Pack SkyTimelapse; each folder of frames is a video, at any depth of nesting."""

    root: Path
    """Folder of sky_train/ and sky_test/."""
    split: Literal["all", "train", "test"] = "train"
    """Which videos."""
    fps: FrameRate = 25.0
    """Frame rate that the packed videos get, Hz; a time-lapse has none of its own."""

    def scan(self) -> ImportResult:
        """Find the folders of frames; frames are sorted by the number after the last `_`."""
        root, notes = find_root(self.root, lambda f: bool(_sky_parts(f, "all")), SKY_EXPECTED)
        if root is None:
            raise not_found(self.root, SKY_EXPECTED)
        folders = _sky_parts(root, self.split)
        if not folders:
            raise not_found(root, f"sky_{self.split}/")
        found, more = frames_below(*folders, base=root)
        if not found:
            raise not_found(folders[0], "folders of images")
        records, alike = frame_records(found, self.fps)
        return ImportResult(records, notes=notes + more + alike)


def _sky_parts(root: Path, split: str) -> list[Path]:
    folders = {folder.name.casefold(): folder for folder in subfolders(root)}
    parts = ("train", "test") if split == "all" else (split,)
    found = (folders.get(f"sky_{part}", folders.get(part)) for part in parts)
    return [folder for folder in found if folder is not None]


FACES_FPS = 25.0
PLUS_PLUS = {"original_sequences", "manipulated_sequences"}
FACES_EXPECTED = (
    "a folder with train/, val/, test/; or one of videos, folders of frames, or zips of those"
)


@dataclass(frozen=True, kw_only=True)
class FaceForensics(Importer):
    """Pack FaceForensics: videos, or crops as folders of frames or zips of them."""

    root: Path
    """Folder of train/, val/ and test/; or of the crops; or a zip of crops."""
    split: Literal["all", "train", "val", "test"] = "train"
    """Which videos; copies without folders for the splits have only `all`."""
    kind: Literal["original", "altered"] = "original"
    """Which videos, where a split has original/, altered/ and mask/."""
    fps: FrameRate | None = None
    """Frame rate that the packed videos get, Hz. By default videos keep theirs, and images get 25.
    """

    def scan(self) -> ImportResult:
        """Take what the split's folder holds: videos if there are any, else frames."""
        self._refuse_plus_plus()
        if self.root.is_file():
            return self._take([self.root], self.root, [])
        root, notes = find_root(self.root, lambda f: bool(split_folders(f, "all")), FACES_EXPECTED)
        if root is None:
            if self.split != "all":
                raise ValueError(
                    f"{self.root}: split={self.split}, but there are no folders train/, val/ or "
                    f"test/. Use split=all for a copy without splits. Expected {FACES_EXPECTED}."
                )
            return self._take([self.root], self.root, notes)
        folders = split_folders(root, self.split)
        if not folders:
            raise not_found(root, f"{self.split}/")
        return self._take([self._inside(folder) for folder in folders], root, notes)

    def _inside(self, folder: Path) -> Path:
        below = {child.name.casefold(): child for child in subfolders(folder)}
        return below.get(self.kind, below.get("videos", folder))

    def _take(self, folders: list[Path], root: Path, notes: list[str]) -> ImportResult:
        videos, passed = videos_below(*(folder for folder in folders if folder.is_dir()))
        if videos:
            records, more = video_records(videos, root)
            return ImportResult(records, notes=notes + passed + more)
        found, more = frames_below(*folders, base=root)
        if not all(each.folder.parts for each in found) or not found:
            if folders[0].is_dir():
                raise not_found(folders[0], FACES_EXPECTED)
            raise ValueError(f"{folders[0]}: no images in it; expected {FACES_EXPECTED}")
        records, alike = frame_records(found, self.fps or FACES_FPS)
        return ImportResult(records, notes=notes + more + alike)

    def _refuse_plus_plus(self) -> None:
        near = [self.root, *subfolders(self.root), *self.root.resolve().parents[:3]]
        for folder in near:
            if PLUS_PLUS & {folder.name, *(child.name for child in subfolders(folder))}:
                raise ValueError(
                    f"{self.root}: this is FaceForensics++ ({' or '.join(sorted(PLUS_PLUS))} is "
                    "there), another set of other videos. The papers on video generation use "
                    "FaceForensics of 2018. Pack it all the same with the set folder."
                )


OPENVID_FILES = {"1M": "OpenVid-1M.csv", "HD": "OpenVidHD.csv"}
OPENVID_FOLDERS = ("video", "videos")
OPENVID_EXPECTED = "a folder with video/, which holds the clips of all zips"


@dataclass(frozen=True, kw_only=True)
class OpenVid(Importer):
    """Pack OpenVid-1M or OpenVidHD-0.4M; part of a download is enough."""

    root: Path
    """Folder of video/ and of the csv, which may also lie in data/ or data/train/."""
    subset: Literal["1M", "HD"] = "1M"
    """Which list: OpenVid-1M.csv or OpenVidHD.csv."""
    annotations: Path | None = None
    """The csv, if it lies elsewhere."""

    def scan(self) -> ImportResult:
        """Match files and rows by file name; the captions are not needed."""
        root, notes = find_root(
            self.root, lambda folder: bool(_openvid_folders(folder)), OPENVID_EXPECTED
        )
        if root is None:
            raise not_found(self.root, OPENVID_EXPECTED)
        table = self.annotations or self._search(root)
        videos, more = videos_below(*_openvid_folders(root))
        paths, copies = by_id(videos, lambda path: path.name)
        rows = {Path(row["video"]).name for row in read_table(table, ("video",)) if row["video"]}
        found = sorted(paths.keys() & rows)
        if not found:
            raise ValueError(f"{root}: none of its {len(paths)} videos is in {table}")
        records = [VideoRecord(plain(Path(name).stem), paths[name], None) for name in found]
        missing = sorted(rows - paths.keys())
        unlabeled = sorted(printable(paths[name]) for name in paths.keys() - rows)
        return ImportResult(records, [], missing, unlabeled, notes + more + copies)

    def _search(self, root: Path) -> Path:
        name = OPENVID_FILES[self.subset]
        for folder in (root, root / "data", root / "data" / "train", root.resolve().parent):
            if (folder / name).is_file():
                return folder / name
        raise ValueError(
            f"{root}: no {name} in it, in data/ or in data/train/. It comes with the set; give "
            "annotations if it lies elsewhere."
        )


def _openvid_folders(root: Path) -> list[Path]:
    return [root / name for name in OPENVID_FOLDERS if (root / name).is_dir()]
