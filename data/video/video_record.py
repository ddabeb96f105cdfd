"""What an importer hands on: one video, or one stretch of one, with its label."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.seeding import fold

VIDEO_EXTENSIONS = ("mp4", "mkv", "avi", "mov", "webm", "mpg", "mpeg", "m4v", "wmv", "flv", "ts")
"""File name extensions taken for videos, in lower case and without the dot."""
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp")
"""File name extensions taken for frames stored as images, likewise."""


@dataclass(frozen=True)
class VideoRecord:
    """Frames `[start, end)` of the video at `path`; `end=None` means up to the last frame."""

    id: str
    """Unique in its set and the same in every run; no dots or slashes, which webdataset cuts at."""
    path: Path
    """The video file; or the folder or the zip of its frames."""
    label: int | None
    """Index into the set's class names; None without a class."""
    start: int = 0
    """First frame."""
    end: int | None = None
    """One past the last frame."""
    seconds: tuple[float, float] | None = None
    """Instead of frames: the stretch from one time to another, at the video's mean frame rate."""
    images: tuple[str, ...] = ()
    """Where the frames are images: their names in `path`, in order."""
    fps: float | None = None
    """Where the frames are images: frames per second, Hz."""

    def __post_init__(self) -> None:
        if not self.id or set(self.id) & set("./\\"):
            raise ValueError(
                f"{self.path}: id {self.id!r} must be non-empty, without dots or slashes"
            )
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise ValueError(
                f"{self.path}: frames [{self.start}, {self.end}) are empty or negative; "
                "start must be >= 0 and end past it"
            )
        if self.seconds is not None and not 0 <= self.seconds[0] < self.seconds[1]:
            raise ValueError(
                f"{self.path}: seconds {self.seconds} must not be negative, the end past the start"
            )
        if self.images and not (self.fps is not None and self.fps > 0):
            raise ValueError(f"{self.path}: images need fps, frames per second above 0")

    @property
    def is_whole(self) -> bool:
        """Whether the record is its whole file."""
        return self.start == 0 and self.end is None and self.seconds is None


def split_by_id(
    records: Sequence[VideoRecord], holdout: float, part: Literal["train", "test"]
) -> list[VideoRecord]:
    """Part of the records: about a fraction `holdout` is `test`, the others are `train`.

    A hash of each id decides, so a record stays in its part when others come or go. Recordings
    that belong together (UCF-101's groups) may be separated: prefer the split a set comes with.

    Raises:
        ValueError: `holdout` is not between 0 and 1.
    """
    if not 0 < holdout < 1:
        raise ValueError(f"holdout={holdout} must be a fraction between 0 and 1")
    return [
        record
        for record in records
        if (fold("holdout", record.id) < holdout * 2**63) == (part == "test")
    ]
