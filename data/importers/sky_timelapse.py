"""SkyTimelapse: clips of drifting clouds, each a folder of frames."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.importers.base import FrameRate, Importer, ImportResult, find_root, not_found, subfolders
from data.importers.files import frame_records, frames_below

SPLITS = {"train": ("sky_train", "train"), "test": ("sky_test", "test")}
EXPECTED = "a folder with sky_train/ and sky_test/, which hold <id>/<id>_<k>/*.jpg"


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
        root, notes = find_root(self.root, lambda f: bool(_parts(f, "all")), EXPECTED)
        if root is None:
            raise not_found(self.root, EXPECTED)
        folders = _parts(root, self.split)
        if not folders:
            raise not_found(root, f"{SPLITS[self.split][0]}/")
        found = []
        for folder in folders:
            frames, more = frames_below(folder, root)
            found += frames
            notes += more
        if not found:
            raise not_found(folders[0], "folders of images")
        records, more = frame_records(found, [None] * len(found), self.fps)
        return ImportResult(records, notes=notes + more)


def _parts(root: Path, split: str) -> list[Path]:
    wanted = SPLITS if split == "all" else {split: SPLITS[split]}
    folders = {folder.name.casefold(): folder for folder in subfolders(root)}
    found = [
        next((folders[name] for name in names if name in folders), None)
        for names in wanted.values()
    ]
    return [folder for folder in found if folder is not None]
