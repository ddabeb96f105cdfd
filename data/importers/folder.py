"""Any folder of videos, with the folder a video lies in as its class."""

import os
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Literal

from data.records import VIDEO_EXTENSIONS, VideoRecord


def scan_folder(
    root: str | Path, labels: Literal["parent", "none"] = "parent"
) -> tuple[list[VideoRecord], list[str]]:
    """Find the videos under `root`, at any depth, following links; hidden files are left out.

    Args:
        root: the folder.
        labels: `parent` makes a class of the name of the folder each video lies in; folders of one
            name in several places are one class. `none` gives no labels.

    Returns:
        Records in order of their paths, and the class names in order of the labels. An id is the
        path inside `root` without its extension, with `__` for slashes and `_` for dots; where
        that leaves two alike, a hash of the path is added.

    Raises:
        ValueError: no such folder, no videos in it, or `parent` and a video directly in `root`.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; a folder of videos was expected")
    paths = sorted(path for path in _files(root) if _extension(path) in VIDEO_EXTENSIONS)
    if not paths:
        raise ValueError(
            f"{root}: no videos in it or below it. Files ending in "
            f"{', '.join('.' + extension for extension in VIDEO_EXTENSIONS)} are taken for videos."
        )
    class_names: list[str] = []
    if labels == "parent":
        loose = next((path for path in paths if path.parent == root), None)
        if loose is not None:
            raise ValueError(
                f"{loose}: lies in no class folder. Move the videos into one folder for each "
                "class, or use labels=none."
            )
        class_names = sorted({path.parent.name for path in paths})
    label_of = {name: label for label, name in enumerate(class_names)}
    ids = _ids([path.relative_to(root) for path in paths])
    records = [
        VideoRecord(id, path, label_of.get(path.parent.name))
        for id, path in zip(ids, paths, strict=True)
    ]
    return records, class_names


def _files(root: Path) -> Iterator[Path]:
    """Files below `root` that are not hidden, each folder once however many links lead there."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            subfolders.clear()
            continue
        seen.add(place)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _extension(path: Path) -> str:
    return path.suffix[1:].lower()


def _ids(paths: list[Path]) -> list[str]:
    plain = [_plain(path) for path in paths]
    counts = Counter(plain)
    return [
        name if counts[name] == 1 else f"{name}-{sha256(os.fsencode(path)).hexdigest()[:8]}"
        for name, path in zip(plain, paths, strict=True)
    ]


def _plain(path: Path) -> str:
    name = "__".join(path.with_suffix("").parts).replace(".", "_").replace("\\", "_")
    return name.encode("utf-8", "replace").decode()
