"""A folder of numbered clips, lossless for evaluation, with copies for people in others."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from common.files import atomic_path
from data.video.decode import read_frames
from data.video.encode import write_video
from data.video.probe import probe


@dataclass(frozen=True, kw_only=True)
class ClipFolder:
    """Where clips go: `clip-000000.mkv`, `clip-000001.mkv`, ..."""

    folder: Path
    """For lossless clips (ffv1)."""
    mp4: Path | None = None
    """For copies in H.264, if any."""
    gif: Path | None = None
    """For copies of 256 colors, if any."""
    frame_rate: float
    """Hz."""

    @property
    def folders(self) -> list[Path]:
        """Each folder once."""
        given = (self.folder, self.mp4, self.gif)
        return list({folder.resolve(): folder for folder in given if folder}.values())

    def clip(self, index: int) -> Path:
        """File of a lossless clip."""
        return self.folder / f"clip-{index:06d}.mkv"

    def write(self, index: int, frames: UInt8[np.ndarray, "t h w c"]) -> None:
        """Write a clip and its copies."""
        write_video(self.clip(index), frames, self.frame_rate, codec="ffv1")
        self.copy(index, frames)

    def copy(self, index: int, frames: UInt8[np.ndarray, "t h w c"] | None = None) -> None:
        """Write the copies that are missing, of the lossless file or its `frames`."""
        wanted = {"mp4": self.mp4, "gif": self.gif}
        paths = {
            kind: path
            for kind, folder in wanted.items()
            if folder is not None and not (path := folder / f"clip-{index:06d}.{kind}").exists()
        }
        if not paths:
            return
        if frames is None:
            frames = read_frames(self.clip(index), range(probe(self.clip(index)).frames))
        if "mp4" in paths:
            write_video(paths["mp4"], frames, self.frame_rate)
        if "gif" in paths:
            first, *others = (Image.fromarray(frame) for frame in frames)
            with atomic_path(paths["gif"]) as temporary:
                first.save(
                    temporary,
                    format="GIF",
                    save_all=True,
                    append_images=others,
                    duration=1000 / self.frame_rate,
                    loop=0,
                )
