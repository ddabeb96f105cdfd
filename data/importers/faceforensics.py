"""FaceForensics (2018): talking faces, as videos, as crops in folders of frames, or in zips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.importers.base import (
    FrameRate,
    Importer,
    ImportResult,
    find_root,
    not_found,
    split_folders,
    subfolders,
)
from data.importers.files import frame_records, frames_below, video_records, videos_below

PLUS_PLUS = {"original_sequences", "manipulated_sequences"}
EXPECTED = (
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
    fps: FrameRate = 25.0
    """Frame rate that the packed videos get, Hz, where frames are images."""

    def scan(self) -> ImportResult:
        """Take what the split's folder holds: videos if there are any, else frames."""
        self._refuse_plus_plus()
        if self.root.is_file():
            return self._take([self.root], self.root, [])
        root, notes = find_root(self.root, lambda f: bool(split_folders(f, "all")), EXPECTED)
        if root is None:
            if self.split != "all":
                raise ValueError(
                    f"{self.root}: split={self.split}, but there are no folders train/, val/ or "
                    f"test/. Use split=all for a copy without splits. Expected {EXPECTED}."
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
                raise not_found(folders[0], EXPECTED)
            raise ValueError(f"{folders[0]}: no images in it; expected {EXPECTED}")
        records, more = frame_records(found, [None] * len(found), self.fps)
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
