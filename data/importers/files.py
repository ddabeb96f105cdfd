"""Videos, folders of frames, zips of frames and tables of annotations on disk."""

import csv
import os
import re
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.importers.base import ids_of, some
from data.video.video_record import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, VideoRecord

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # captions may be longer than the 131,072 allowed


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


def frames_below(root: Path, base: Path | None = None) -> tuple[list[Frames], list[str]]:
    """Every folder with images below `root`, and in the zips there; `root` may itself be a zip.

    Paths are given from `base`, by default `root`. Frames are sorted by the number that their
    names end in, because it need not have leading zeros.

    Returns:
        The videos in order of their paths, and notes about empty folders and odd numbers.

    Raises:
        ValueError: a zip that cannot be read.
    """
    if root.is_file():
        found, empty = _in_zip(root, PurePosixPath()), []
    else:
        base = base or root
        found, folders = [], defaultdict(list)
        for path in walk(root):
            if extension(path) in IMAGE_EXTENSIONS:
                folders[path.parent].append(path.name)
            elif extension(path) == "zip":
                relative = PurePosixPath(path.relative_to(base).with_suffix(""))
                found += _in_zip(path, relative)
        for folder, names in folders.items():
            inside = PurePosixPath(folder.relative_to(base))
            found.append(Frames(folder, inside, tuple(sorted(names, key=_order))))
        empty = [folder for folder, below, names in os.walk(root) if not (below or names)]
    notes = [f"empty folders: {some(empty)}"] if empty else []
    gaps = [str(frames.folder) for frames in found if _has_gap(frames.images)]
    if gaps:
        notes.append(f"numbers of frames missing or repeated in: {some(gaps)}")
    return sorted(found, key=lambda frames: str(frames.folder)), notes


def frame_records(
    found: Sequence[Frames], labels: Sequence[int | None], fps: float
) -> tuple[list[VideoRecord], list[str]]:
    """Records of folders of frames, with ids from their paths; and a note where ids are alike."""
    names = [str(frames.folder) for frames in found]
    ids, notes = ids_of(names, names)
    records = [
        VideoRecord(id, frames.container, label, images=frames.images, fps=fps)
        for id, frames, label in zip(ids, found, labels, strict=True)
    ]
    return records, notes


def video_records(
    paths: Sequence[Path], root: Path, labels: Sequence[int | None]
) -> tuple[list[VideoRecord], list[str]]:
    """Records of videos, with ids from their paths in `root`; and a note where ids are alike."""
    names = [path.relative_to(root) for path in paths]
    ids, notes = ids_of([str(name.with_suffix("")) for name in names], list(map(str, names)))
    records = [
        VideoRecord(id, path, label) for id, path, label in zip(ids, paths, labels, strict=True)
    ]
    return records, notes


def frame_number(name: str) -> int | None:
    """The number at the end of an image's name: 46 for `x_frames_00000046.jpg`."""
    digits = re.search(r"(\d+)$", PurePosixPath(name).stem.rsplit("_", 1)[-1])
    return int(digits.group(1)) if digits else None


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not blank, whatever ends them; a `ValueError` names it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[dict[str, str]]:
    """Rows of a csv file with a header, one at a time, as {column: value}.

    Args:
        columns: the columns wanted; other columns are passed over.
        optional: columns that give empty values where the file does not have them.

    Raises:
        ValueError: the file cannot be read, or has not all of `columns`.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            if missing := [name for name in columns if name not in reader.fieldnames]:
                raise ValueError(
                    f"{path}: no column {missing[0]!r}; it has {', '.join(reader.fieldnames)}"
                )
            for row in reader:
                yield {name: (row.get(name) or "").strip() for name in (*columns, *optional)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as csv ({error})") from None


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
