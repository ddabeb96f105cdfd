"""Which frames of which videos are evaluated."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from common.config import Config, Frames, Pixels
from common.seeding import fold


@dataclass(frozen=True, kw_only=True)
class ClipProtocol(Config):
    """Which frames of which videos are evaluated."""

    frames: Frames = 16
    """Frames per clip."""
    stride: Frames = 1
    """Video frames from one clip frame to the next."""
    start: Literal["random", "first", "center"] = "random"
    """First frame: drawn from the seed and the video's id; the first one; or the clip centered."""
    skip: Annotated[int, Ge(0)] = 0
    """Frames left out at the start of every video: 1 drops a video VAE's image frame."""
    num_clips: Annotated[int | None, Ge(1)] = 2048
    """Most clips, one per video; None takes every video."""
    seed: int = 0
    """Chooses videos and random starts."""
    height: Pixels | None = None
    """Pixels; with `width`, frames are resized to cover this size (bicubic, antialiased, aspect
    kept) and cropped at the center, as training data are. None keeps the videos' own size."""
    width: Pixels | None = None
    """Pixels; see `height`."""
    noise: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of Gaussian noise added to the pixels in [-1, 1], drawn from the seed and
    the video's id: how far does a score move?"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width are given together or not at all")

    @property
    def span(self) -> int:
        """Frames a video needs."""
        return self.skip + (self.frames - 1) * self.stride + 1

    def first_frame(self, id: str, frames: int) -> int:
        """First frame of the clip in a video of `frames` frames, which are at least `span`."""
        slack = frames - self.span
        match self.start:
            case "first":
                offset = 0
            case "center":
                offset = slack // 2
            case "random":
                offset = fold(self.seed, "clip start", id) % (slack + 1)
        return self.skip + offset

    def indices(self, start: int) -> list[int]:
        """The video's frames that make the clip, from `start` on."""
        return [start + self.stride * i for i in range(self.frames)]
