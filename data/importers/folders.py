"""Sets told by their folders: videos, frames or images; SkyTimelapse, FaceForensics, OpenVid."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from common.files import printable
from common.seeding import fold
from data.importers.base import (
    FrameRate,
    Importer,
    ImportResult,
    by_id,
    files_in,
    find_root,
    not_found,
    plain,
    split_folders,
    subfolders,
)
from data.importers.files import (
    Frames,
    extension,
    frame_records,
    frames_below,
    read_table,
    video_records,
    videos_below,
)
from data.video.video_record import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, VideoRecord


@dataclass(frozen=True, kw_only=True)
class _Generic(Importer):
    """Files of any set that has no importer of its own."""

    labels: Literal["parent", "none"] = "parent"
    """Class of a video: the name of the folder that it lies in, or none. Folders of one name in
    several places are one class."""
    split: Literal["all", "train", "test"] = "all"
    """Which videos: all, or one side of the split that `holdout` makes by a hash of each id."""
    holdout: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Fraction of the videos that are the split `test`; the others are `train`."""

    def _split(self, records: list[VideoRecord]) -> list[VideoRecord]:
        """A hash of each id decides, so a record stays in its part when others come or go."""
        if self.split == "all":
            return records
        bound, wanted = self.holdout * 2**63, self.split == "test"
        return [record for record in records if (fold("holdout", record.id) < bound) == wanted]

    def _classes(
        self, parents: Sequence[str], loose: Path | None
    ) -> tuple[list[str], list[int | None]]:
        """Class names, and the label of each video given its folder's name; `loose` has none."""
        if self.labels == "none":
            return [], [None] * len(parents)
        if loose is not None:
            raise ValueError(
                f"{printable(loose)}: lies in no class folder. Move the videos into one folder "
                "for each class, or use labels=none. If these are the videos of one class, "
                f"root={self.root} is one level too low."
            )
        names = sorted(set(parents))
        label_of = {name: label for label, name in enumerate(names)}
        return names, [label_of[name] for name in parents]


@dataclass(frozen=True, kw_only=True)
class Folder(_Generic):
    """Pack any folder of videos; the folder that a video lies in is its class.

    An id is the path inside `root` without its extension, with `__` for slashes and `_` for dots.
    """

    def scan(self) -> ImportResult:
        """Find the videos at any depth, following links; hidden files are left out."""
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder; a folder of videos was expected")
        paths, passed = videos_below(self.root)
        if not paths:
            frames = any(
                extension(file) in IMAGE_EXTENSIONS
                for folder in subfolders(self.root)
                for file in files_in(folder)
            )
            raise ValueError(
                f"{self.root}: no videos in it or below it. Files ending in "
                f"{', '.join('.' + extension for extension in VIDEO_EXTENSIONS)} are taken for "
                f"videos.{' Its folders hold images: use the set frames.' if frames else ''}"
            )
        loose = next((path for path in paths if path.parent == self.root), None)
        parents = [printable(path.parent.name) for path in paths]
        names, labels = self._classes(parents, loose)
        records, notes = video_records(paths, self.root, labels)
        return ImportResult(self._split(records), names, notes=passed + notes)


@dataclass(frozen=True, kw_only=True)
class FrameFolders(_Generic):
    """Pack any folder of folders of frames (images); zips of such folders, too.

    An id is the path of the folder inside `root`, with `__` for slashes and `_` for dots. Frames
    are sorted by the number that their names end in.
    """

    root: Path
    """Folder of folders of frames, or a zip of them."""
    fps: FrameRate = 25.0
    """Frame rate that the packed videos get, Hz."""

    def scan(self) -> ImportResult:
        """Find folders with images at any depth, following links; hidden files are left out."""
        expected = "folders of images, at any depth, or zips of them"
        if not self.root.exists():
            raise ValueError(f"{self.root}: no such folder or zip; expected {expected}")
        found, notes = frames_below(self.root)
        if not found and self.root.is_dir():
            raise not_found(self.root, expected)
        if not found:
            raise ValueError(f"{self.root}: expected {expected}, but it holds no images")
        if not all(each.folder.parts for each in found):
            raise ValueError(
                f"{self.root}: one level too low, it holds the frames of one video. "
                f"Give {self.root.resolve().parent}: expected {expected}."
            )
        loose = next((each.container for each in found if len(each.folder.parts) < 2), None)
        names, labels = self._classes([printable(each.folder.parent.name) for each in found], loose)
        records, more = frame_records(found, labels, self.fps)
        return ImportResult(self._split(records), names, notes=notes + more)


SKY_SPLITS = {"train": ("sky_train", "train"), "test": ("sky_test", "test")}
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
            raise not_found(root, f"{SKY_SPLITS[self.split][0]}/")
        found = []
        for folder in folders:
            frames, more = frames_below(folder, root)
            found += frames
            notes += more
        if not found:
            raise not_found(folders[0], "folders of images")
        records, more = frame_records(found, [None] * len(found), self.fps)
        return ImportResult(records, notes=notes + more)


def _sky_parts(root: Path, split: str) -> list[Path]:
    wanted = SKY_SPLITS if split == "all" else {split: SKY_SPLITS[split]}
    folders = {folder.name.casefold(): folder for folder in subfolders(root)}
    found = [
        next((folders[name] for name in names if name in folders), None)
        for names in wanted.values()
    ]
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
            records, more = video_records(videos, root, [None] * len(videos))
            return ImportResult(records, notes=notes + passed + more)
        found = []
        for folder in folders:
            frames, more = frames_below(folder, root)
            found += frames
            notes += more
        if not all(each.folder.parts for each in found) or not found:
            if folders[0].is_dir():
                raise not_found(folders[0], FACES_EXPECTED)
            raise ValueError(f"{folders[0]}: no images in it; expected {FACES_EXPECTED}")
        records, more = frame_records(found, [None] * len(found), self.fps or FACES_FPS)
        return ImportResult(records, notes=notes + more)

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


@dataclass(frozen=True, kw_only=True)
class Images(_Generic):
    """Pack any folder of still images, each a video of one frame; zips of images, too.

    An id is the path inside `root` without its extension, with `__` for slashes and `_` for dots.
    """

    root: Path
    """Folder of images, or a zip of them."""
    min_frames: Annotated[int, Ge(1)] = 1
    """An image has one frame."""

    def scan(self) -> ImportResult:
        """Find the images at any depth, following links; hidden files are left out."""
        if not self.root.exists():
            raise ValueError(f"{self.root}: no such folder or zip; images were expected")
        found = [
            Frames(frames.container, frames.folder / PurePosixPath(name).stem, (name,))
            for frames in frames_below(self.root)[0]
            for name in frames.images
        ]
        if not found:
            endings = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
            raise ValueError(f"{self.root}: no images in it or below it, files ending in {endings}")
        loose = next((each.container for each in found if len(each.folder.parts) < 2), None)
        names, labels = self._classes([printable(each.folder.parent.name) for each in found], loose)
        records, notes = frame_records(found, labels, fps=1.0)
        return ImportResult(self._split(records), names, notes=notes)
