"""Tars: written so that their content decides their bytes, and read by webdataset's rules.

Members are one sample if they follow each other and their paths are equal up to the first dot in
the file name. Extensions are taken in lower case. Files named `__like_this__`, and what lies in
such a folder, are no samples.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO

from data.video.video_record import CLIP_EXTENSIONS, VIDEO_EXTENSIONS

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
META = re.compile(r"__[^/]*__($|/)")


def find_tars(folder: Path) -> list[Path]:
    """All tars in a folder and below; a `ValueError` where there are none, or compressed ones."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    packed = [path for path in files if path.name.endswith(COMPRESSED)]
    if packed:
        raise ValueError(
            f"{packed[0]}: is compressed, so nothing in it can be read by its place. Decompress "
            f"it ({len(packed)} such files), or read it in streaming mode."
        )
    tars = [path for path in files if path.suffix == ".tar" and path.is_file()]
    if not tars:
        raise ValueError(f"{folder}: no .tar files there or below")
    return tars


class TarWriter:
    """Writes a tar whose bytes depend on its members' names and contents alone."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = sha256()
        self.size = 0
        """Bytes so far."""

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a member; returns its contents' (offset, size) in the file."""
        info = tarfile.TarInfo(name)  # owner 0, time 0
        info.size, info.mode = len(data), 0o644
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
        offset = self.size
        self._write(data)
        self._write(bytes(-self.size % tarfile.BLOCKSIZE))
        return offset, len(data)

    def close(self) -> str:
        """Write the end mark; returns the sha256 of the whole tar."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


def split_name(name: str) -> tuple[str, str] | None:
    """webdataset's (key, extension) of a member, at the first dot of the file name, or None."""
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (match.group(1), match.group(2)) if match else None


def tar_samples(tar: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]], list[str]]]:
    """Samples of a tar in order: the key, extension -> (offset, size), and repeated extensions.

    Of a member that occurs twice in a sample the first counts.
    """
    current: str | None = None
    members: dict[str, tuple[int, int]] = {}
    repeated: list[str] = []
    for name, place in tar_members(tar):
        parts = split_name(name)
        if parts is None or META.match(name):
            continue
        key, extension = parts[0], parts[1].lower()
        if key != current:
            if current is not None:
                yield current, members, repeated
            current, members, repeated = key, {}, []
        if extension in members:
            repeated.append(extension)
        else:
            members[extension] = place
    if current is not None:
        yield current, members, repeated


def has_end(tar: Path) -> bool:
    """Whether a readable tar ends as tars do, with zeros; one cut between members does not."""
    with open(tar, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for _ in archive:
            pass
        file.seek(archive.offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


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
    """The first of a sample's extensions that is a video's, else an image's; None without one."""
    found = [e for e in extensions if plain_extension(e) in CLIP_EXTENSIONS]
    return min(found, key=lambda e: plain_extension(e) not in VIDEO_EXTENSIONS, default=None)


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
