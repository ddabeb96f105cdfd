"""Where videos to evaluate lie: packed shards or folders of files, looked at in the same way."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from common.files import sha256_file
from data.importers.folders import frames_below, videos_below
from data.shards.index import INDEX, ShardIndex
from data.video.decode import read_frames
from data.video.probe import probe


@dataclass(frozen=True)
class Video:
    """One video that could give a clip."""

    id: str
    frames: int
    height: int
    width: int
    fps: float | None
    """None for folders of frames: not known."""
    codec: str | None
    """None for packed videos: see `Store.codec`. For images the extension of the first one."""
    notes: tuple[str, ...] = ()
    """What is unusual about a file; of packed videos, the report of packing has it."""


class Store(Protocol):
    """Where videos lie."""

    kind: str

    def ids(self) -> list[str]:
        """Every video's id."""
        ...

    def video(self, id: str) -> Video:
        """What is known of a video."""
        ...

    def codec(self, id: str) -> str:
        """How a video is stored: FFmpeg's name of its codec, or the extension of its images."""
        ...

    def read(self, id: str, indices: Sequence[int]) -> UInt8[np.ndarray, "t h w 3"]:
        """Frames of a video, RGB."""
        ...

    def digest(self, id: str) -> str:
        """Changes whenever the video's bytes do."""
        ...


class _Shards:
    kind = "shards"

    def __init__(self, folder: Path):
        self.index = ShardIndex.load(folder)
        entries = self.index.entries
        self.numbers = {entries.key(i): i for i in range(len(entries))}

    def ids(self) -> list[str]:
        return list(self.numbers)

    def video(self, id: str) -> Video:
        entry = self.index.entries[self.numbers[id]]
        return Video(id, entry.frames, entry.height, entry.width, entry.fps, None)

    def codec(self, id: str) -> str:
        return probe(self.index.read(self.numbers[id])).codec

    def read(self, id: str, indices: Sequence[int]) -> np.ndarray:
        return read_frames(self.index.read(self.numbers[id]), indices)

    def digest(self, id: str) -> str:
        return self.index.hash


class _Files:
    kind = "videos"

    def __init__(self, folder: Path):
        videos, _ = videos_below(folder)
        self.paths = {path.relative_to(folder).as_posix(): path for path in videos}

    def ids(self) -> list[str]:
        return list(self.paths)

    def video(self, id: str) -> Video:
        info = probe(self.paths[id])
        return Video(id, info.frames, info.height, info.width, info.fps, info.codec, info.notes)

    def codec(self, id: str) -> str:
        return probe(self.paths[id]).codec

    def read(self, id: str, indices: Sequence[int]) -> np.ndarray:
        return read_frames(self.paths[id], indices)

    def digest(self, id: str) -> str:
        return sha256_file(self.paths[id])


class _Frames:
    kind = "frames"

    def __init__(self, folder: Path):
        found, _ = frames_below(folder, base=folder)
        self.frames = {
            frames.folder.as_posix(): frames for frames in found if frames.container.is_dir()
        }

    def ids(self) -> list[str]:
        return list(self.frames)

    def video(self, id: str) -> Video:
        images = self._images(id)
        height, width = self._image(images[0]).shape[:2]
        return Video(id, len(images), height, width, None, self.codec(id))

    def codec(self, id: str) -> str:
        return self._images(id)[0].suffix[1:].lower()

    def read(self, id: str, indices: Sequence[int]) -> np.ndarray:
        images = self._images(id)
        frames = [self._image(images[index]) for index in indices]
        for index, frame in zip(indices, frames, strict=True):
            if frame.shape != frames[0].shape:
                raise ValueError(f"{images[index]}: another size than the frames before it")
        return np.stack(frames)

    def digest(self, id: str) -> str:
        digests = [sha256_file(path) for path in self._images(id)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def _images(self, id: str) -> list[Path]:
        return [self.frames[id].container / name for name in self.frames[id].images]

    def _image(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{path}: not a readable image ({error})") from None


def open_store(folder: Path) -> Store:
    """The videos of `folder`: packed where it has an `index.json`, else files at any depth, and
    where there are none, folders of images.

    Raises:
        ValueError: no such folder, or a damaged index.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of shards, videos or folders of frames")
    if (folder / INDEX).is_file():
        return _Shards(folder)
    files = _Files(folder)
    return files if files.paths else _Frames(folder)
