"""OpenVid-1M and OpenVidHD-0.4M: clips with captions, listed in a csv, unpacked into one folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.importers.base import Importer, ImportResult, by_id, find_root, not_found, plain
from data.importers.files import read_table, videos_below
from data.video.decode_errors import printable
from data.video.video_record import VideoRecord

FILES = {"1M": "OpenVid-1M.csv", "HD": "OpenVidHD.csv"}
FOLDERS = ("video", "videos")
EXPECTED = "a folder with video/, which holds the clips of all zips"


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
        root, notes = find_root(self.root, lambda folder: bool(_folders(folder)), EXPECTED)
        if root is None:
            raise not_found(self.root, EXPECTED)
        table = self.annotations or self._search(root)
        videos, more = videos_below(*_folders(root))
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
        name = FILES[self.subset]
        for folder in (root, root / "data", root / "data" / "train", root.resolve().parent):
            if (folder / name).is_file():
                return folder / name
        raise ValueError(
            f"{root}: no {name} in it, in data/ or in data/train/. It comes with the set; give "
            "annotations if it lies elsewhere."
        )


def _folders(root: Path) -> list[Path]:
    return [root / name for name in FOLDERS if (root / name).is_dir()]
