"""Where videos to evaluate lie: packed shards or folders of files, looked at in the same way."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.decode import probe
from data.index import INDEX
from data.records import VIDEO_EXTENSIONS
from data.shards import ShardIndex
from engine.files import sha256_file


@dataclass(frozen=True)
class Video:
    """One video that could give a clip."""

    id: str
    frames: int
    height: int
    width: int
    fps: float
    codec: str | None
    """None for packed videos: not looked at."""


class Store(Protocol):
    """Where videos lie."""

    kind: str

    def ids(self) -> list[str]:
        """Every video's id."""
        ...

    def video(self, id: str) -> Video:
        """What is known of a video."""
        ...

    def source(self, id: str) -> Path | bytes:
        """What `read_frames` takes."""
        ...

    def digest(self, id: str) -> str:
        """Changes whenever the video's bytes do."""
        ...


class _Shards:
    kind = "shards"

    def __init__(self, folder: Path):
        self.index = ShardIndex.load(folder)
        self.numbers = {sample.key: i for i, sample in enumerate(self.index.samples)}

    def ids(self) -> list[str]:
        return list(self.numbers)

    def video(self, id: str) -> Video:
        sample = self.index.samples[self.numbers[id]]
        return Video(id, sample.frames, sample.height, sample.width, sample.fps, None)

    def source(self, id: str) -> bytes:
        return self.index.read(self.numbers[id])

    def digest(self, id: str) -> str:
        return self.index.hash


class _Files:
    kind = "videos"

    def __init__(self, folder: Path):
        endings = {f".{extension}" for extension in VIDEO_EXTENSIONS}
        files = (path for path in folder.rglob("*") if path.suffix.lower() in endings)
        visible = (path.relative_to(folder) for path in files if path.is_file())
        self.paths = {
            path.as_posix(): folder / path
            for path in sorted(visible)
            if not any(part.startswith(".") for part in path.parts)
        }

    def ids(self) -> list[str]:
        return list(self.paths)

    def video(self, id: str) -> Video:
        info = probe(self.paths[id])
        return Video(id, info.frames, info.height, info.width, info.fps, info.codec)

    def source(self, id: str) -> Path:
        return self.paths[id]

    def digest(self, id: str) -> str:
        return sha256_file(self.paths[id])


def open_store(folder: Path) -> Store:
    """The videos of `folder`: packed where it has an `index.json`, else files at any depth.

    Raises:
        ValueError: no such folder, or a damaged index.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of shards or videos")
    return _Shards(folder) if (folder / INDEX).is_file() else _Files(folder)
