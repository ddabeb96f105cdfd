"""Any folder of videos, and any folder of folders of frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Lt

from data.importers.base import FrameRate, Importer, ImportResult, files_in, not_found, subfolders
from data.importers.files import (
    extension,
    frame_records,
    frames_below,
    video_records,
    videos_below,
)
from data.video.decode_errors import printable
from data.video.video_record import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, VideoRecord, split_by_id


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
        return records if self.split == "all" else split_by_id(records, self.holdout, self.split)

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
