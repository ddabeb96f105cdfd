"""Which frames of which videos are evaluated, and whether two sets move alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

from annotated_types import Ge

from common.config import Config, Frames, Pixels
from common.seeding import fold

RATE_TOLERANCE = 0.1  # relative; containers round frame rates


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


class Rated(Protocol):
    """What `check_rates` asks of a set of clips."""

    @property
    def folder(self) -> Path:
        """Folder of the clips."""
        ...

    @property
    def rate(self) -> float | None:
        """Frames of a clip per second, Hz; None where the files do not say."""
        ...

    @property
    def protocol(self) -> ClipProtocol:
        """How clips are cut from the videos."""
        ...


def check_rates(real: Rated, fake: Rated) -> None:
    """Refuse (`ValueError`) sets whose frames lie differently far apart in time, or may do so."""
    if real.rate is None or fake.rate is None:
        folder = real.folder if real.rate is None else fake.folder
        what = "statistics of others" if folder.suffix == ".pkl" else "folders of frames"
        raise ValueError(
            f"{folder}: {what} have no frame rate, so the motion cannot be checked. "
            "Make sure that the strides fit (real clips at the training stride), then allow a "
            "rate mismatch."
        )
    if abs(real.rate / fake.rate - 1) > RATE_TOLERANCE:
        raise ValueError(
            f"real clips run at {real.rate:.4g} frames/s (stride {real.protocol.stride}), "
            f"generated ones at {fake.rate:.4g} (stride {fake.protocol.stride}): their motion "
            "cannot match. Set the strides (real clips at the training stride), or allow the "
            "mismatch if the files' frame rates mean nothing."
        )
