"""Videos and frames as they lie in folders and zips, and the sets that need no more than that."""

import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from common.files import printable
from common.seeding import fold
from data.importers.base import (
    FrameRate,
    Importer,
    ImportResult,
    files_in,
    ids_of,
    not_found,
    some,
    subfolders,
)
from data.video.video_record import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, VideoRecord


@dataclass(frozen=True)
class Frames:
    """Images that are the frames of one video."""

    container: Path
    """The folder or the zip."""
    folder: PurePosixPath
    """Where they lie: path from the folder that was searched; inside of it, zips are folders."""
    images: tuple[str, ...]
    """Names inside the container, in order."""


def walk(root: Path) -> Iterator[Path]:
    """Files below `root` that are not hidden, each folder once however many links lead there.

    A folder that a link below `root` leads to has the link's name, wherever it lies itself.
    """
    linked = {os.path.realpath(link) for link in _links(root)}
    seen = set()
    for folder, below, names in os.walk(root, onerror=_refuse, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        below[:] = sorted(
            name
            for name in below
            if not name.startswith(".")
            and (os.path.join(place, name) not in linked or os.path.islink(f"{folder}/{name}"))
        )
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _links(root: Path) -> Iterator[str]:
    """Links to folders below `root` that are not hidden; without those that lead in a circle."""
    for folder, below, _ in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        for path in (os.path.join(folder, name) for name in below):
            target = os.path.realpath(path)
            circle = os.path.commonpath([target, os.path.realpath(folder)]) == target
            if os.path.islink(path) and not circle:
                yield path


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: the folder cannot be read ({error.strerror})")


def extension(name: str | Path) -> str:
    """A file name's extension in lower case, without the dot."""
    return PurePosixPath(name).suffix[1:].lower()


def videos_below(*roots: Path) -> tuple[list[Path], list[str]]:
    """Files that look like videos, at any depth, in order of their paths; and a note of the others.

    The note counts by extension the files that are passed over.
    """
    files = {path for root in roots for path in walk(root)}
    videos = {path for path in files if extension(path) in VIDEO_EXTENSIONS}
    others = Counter(extension(path) for path in files - videos)
    counts = [f"{count} .{name}" if name else f"{count} without" for name, count in others.items()]
    notes = [f"files passed over, by extension: {some(sorted(counts), 20)}"] if counts else []
    return sorted(videos), notes


def frames_below(*roots: Path, base: Path) -> tuple[list[Frames], list[str]]:
    """Every folder with images below `roots`, and in the zips there; a root may itself be a zip.

    Paths are given from `base`. Frames are sorted by the number that their names end in, because
    it need not have leading zeros.

    Returns:
        The videos of each root in order of their paths, and notes about empty folders and odd
        numbers.

    Raises:
        ValueError: a zip that cannot be read.
    """
    videos, notes = [], []
    for root in roots:
        if root.is_file():
            found = _in_zip(root, PurePosixPath())
        else:
            found, folders = [], defaultdict(list)
            for path in walk(root):
                if extension(path) in IMAGE_EXTENSIONS:
                    folders[path.parent].append(path.name)
                elif extension(path) == "zip":
                    found += _in_zip(path, PurePosixPath(path.relative_to(base).with_suffix("")))
            for folder, names in folders.items():
                inside = PurePosixPath(folder.relative_to(base))
                found.append(Frames(folder, inside, tuple(sorted(names, key=_order))))
            if empty := [folder for folder, below, names in os.walk(root) if not (below or names)]:
                notes.append(f"empty folders: {some(empty)}")
        if gaps := [str(frames.folder) for frames in found if _has_gap(frames.images)]:
            notes.append(f"numbers of frames missing or repeated in: {some(gaps)}")
        videos += sorted(found, key=lambda frames: str(frames.folder))
    return videos, notes


def frame_records(found: Sequence[Frames], fps: float) -> tuple[list[VideoRecord], list[str]]:
    """Records of folders of frames, with ids from their paths; and a note where ids are alike."""
    names = [str(frames.folder) for frames in found]
    ids, notes = ids_of(names, names)
    records = [
        VideoRecord(id, frames.container, None, images=frames.images, fps=fps)
        for id, frames in zip(ids, found, strict=True)
    ]
    return records, notes


def video_records(paths: Sequence[Path], root: Path) -> tuple[list[VideoRecord], list[str]]:
    """Records of videos, with ids from their paths in `root`; and a note where ids are alike."""
    names = [path.relative_to(root) for path in paths]
    ids, notes = ids_of([str(name.with_suffix("")) for name in names], list(map(str, names)))
    return [VideoRecord(id, path, None) for id, path in zip(ids, paths, strict=True)], notes


def frame_number(name: str) -> int | None:
    """The number at the end of an image's name: 46 for `x_frames_00000046.jpg`."""
    digits = re.search(r"(\d+)$", PurePosixPath(name).stem.rsplit("_", 1)[-1])
    return int(digits.group(1)) if digits else None


def _in_zip(path: Path, relative: PurePosixPath) -> list[Frames]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as a zip ({error})") from None
    folders = defaultdict(list)
    for name in names:
        inside = PurePosixPath(name)
        hidden = any(part.startswith((".", "__MACOSX")) for part in inside.parts)
        if extension(name) in IMAGE_EXTENSIONS and not hidden:
            folders[inside.parent].append(name)
    return [
        Frames(path, _place(path, relative / folder), tuple(sorted(images, key=_order)))
        for folder, images in folders.items()
    ]


def _place(path: Path, folder: PurePosixPath) -> PurePosixPath:
    return folder if folder.parts else PurePosixPath(path.stem)  # images at the top of a zip


def _order(name: str) -> tuple[int, str]:
    number = frame_number(name)
    return (-1 if number is None else number, name)


def _has_gap(images: Sequence[str]) -> bool:
    numbers = [frame_number(name) for name in images]
    first = numbers[0]
    return first is None or numbers != list(range(first, first + len(numbers)))


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

    def _result(
        self, records: list[VideoRecord], places: Sequence[PurePath], notes: list[str]
    ) -> ImportResult:
        """The records of the split with their classes; `places` are their paths inside `root`."""
        names: list[str] = []
        if self.labels == "parent":
            for record, place in zip(records, places, strict=True):
                if len(place.parts) < 2:
                    raise ValueError(
                        f"{printable(record.path)}: lies in no class folder. Move the videos into "
                        "one folder for each class, or use labels=none. If these are the videos of "
                        f"one class, root={self.root} is one level too low."
                    )
            parents = [printable(place.parent.name) for place in places]
            names = sorted(set(parents))
            label_of = {name: label for label, name in enumerate(names)}
            records = [replace(r, label=label_of[p]) for r, p in zip(records, parents, strict=True)]
        if self.split != "all":  # by a hash of each id, so a record stays when others come or go
            bound, test = self.holdout * 2**63, self.split == "test"
            records = [each for each in records if (fold("holdout", each.id) < bound) == test]
        return ImportResult(records, names, notes=notes)


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
        records, alike = video_records(paths, self.root)
        return self._result(records, [p.relative_to(self.root) for p in paths], passed + alike)


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
        found, notes = frames_below(self.root, base=self.root)
        if not found and self.root.is_dir():
            raise not_found(self.root, expected)
        if not found:
            raise ValueError(f"{self.root}: expected {expected}, but it holds no images")
        if not all(each.folder.parts for each in found):
            raise ValueError(
                f"{self.root}: one level too low, it holds the frames of one video. "
                f"Give {self.root.resolve().parent}: expected {expected}."
            )
        records, alike = frame_records(found, self.fps)
        return self._result(records, [frames.folder for frames in found], notes + alike)


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
            for frames in frames_below(self.root, base=self.root)[0]
            for name in frames.images
        ]
        if not found:
            endings = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
            raise ValueError(f"{self.root}: no images in it or below it, files ending in {endings}")
        records, alike = frame_records(found, fps=1.0)
        return self._result(records, [image.folder for image in found], alike)
