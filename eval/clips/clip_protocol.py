"""Which frames of which videos are evaluated."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ClipProtocol:
    """Which frames of which videos are evaluated."""

    frames: int = 16
    """Frames per clip."""
    stride: int = 1
    """Video frames from one clip frame to the next."""
    start: Literal["random", "first", "center"] = "random"
    """First frame: drawn from the seed and the video's id; the first one; or the clip centred."""
    skip: int = 0
    """Frames left out at the start of every video: 1 drops a video VAE's image frame."""
    num_clips: int | None = 2048
    """Most clips, one per video; None takes every video."""
    seed: int = 0
    """Chooses videos and random starts."""
    height: int | None = None
    """Pixels; with `width`, frames are resized to cover this size (bicubic, antialiased, aspect
    kept) and cropped at the centre, as training data are. None keeps the videos' own size."""
    width: int | None = None
    """Pixels; see `height`."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the pixels in [-1, 1], drawn from the seed and
    the video's id: how far does a score move?"""

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("stride", 1), ("skip", 0), ("noise", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.num_clips is not None and self.num_clips < 1:
            raise ValueError(
                f"num_clips={self.num_clips} must be at least 1, or null for every video"
            )
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width are given together or not at all")
        if min(self.height or 1, self.width or 1) < 1:
            raise ValueError(f"size {self.height}x{self.width} must be at least 1x1")

    @property
    def span(self) -> int:
        """Frames a video needs."""
        return self.skip + (self.frames - 1) * self.stride + 1
