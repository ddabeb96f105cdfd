"""webdataset's rules: which members of a tar are one sample, which is its video, what its label.

Members belong together if their paths are equal up to the first dot of the file name.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.video.video_record import VIDEO_EXTENSIONS


def split_name(name: str) -> tuple[str, str] | None:
    """webdataset's (key, extension) of a member, at the first dot of the file name, or None."""
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (match.group(1), match.group(2)) if match else None


def tar_samples(tar: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Samples of a tar in order: the key, and extension -> (offset, size)."""
    current: str | None = None
    members: dict[str, tuple[int, int]] = {}
    for name, place in tar_members(tar):
        parts = split_name(name)
        if parts is None or name.startswith("__"):
            continue
        if parts[0] != current or parts[1] in members:
            if current is not None:
                yield current, members
            current, members = parts[0], {}
        members[parts[1]] = place
    if current is not None:
        yield current, members


def tar_members(tar: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and (offset, size) of every file in a tar, from one pass over the headers.

    Raises:
        ValueError: it is no tar, or is cut short.
    """
    size = tar.stat().st_size
    try:
        with tarfile.open(tar, "r:") as archive:
            for entry in archive:
                if not entry.isreg():
                    continue
                if entry.offset_data + entry.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                yield entry.name, (entry.offset_data, entry.size)
    except tarfile.TarError as error:
        raise ValueError(f"{tar}: is no readable tar ({error}). Copy it again.") from None


def video_extension(extensions: Iterable[str]) -> str | None:
    """The first of a sample's extensions that is a video's, as it is written; None without one."""
    return next((e for e in extensions if plain_extension(e) in VIDEO_EXTENSIONS), None)


def plain_extension(extension: str) -> str:
    """`mp4` of `mp4`, `MP4` and `left.mp4`."""
    return extension.rsplit(".", 1)[-1].lower()


def find_label(members: dict[str, bytes]) -> tuple[int | str | None, str | None]:
    """(label, class name) that the members `cls` and `json` give; None for what they do not.

    Raises:
        ValueError: a label that is neither a number from 0 nor a name, or no JSON.
    """
    facts = json.loads(members["json"]) if "json" in members else {}
    facts = facts if isinstance(facts, dict) else {}
    given = members["cls"].decode().strip() if "cls" in members else None
    label = given if given is not None else facts.get("label", facts.get("cls"))
    if isinstance(label, str) and re.fullmatch(r"-?\d+", label):
        label = int(label)
    if isinstance(label, bool | float | list | dict):
        raise ValueError(f"label {label!r} is neither a number nor a name")
    return (None if label == -1 else label), facts.get("class_name")
