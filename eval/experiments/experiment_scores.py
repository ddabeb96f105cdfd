"""Scores of sets of clips by the commands eval_fvd and eval_is, with a classifier of the data's own
classes.

They are called `fvd_demo` and `is_demo` in tables, because they are neither FVD nor IS: those need
I3D and C3D. They mean something only beside each other: as many clips, the same reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.files import read_json
from common.stages import CommandStages
from data.video.decode import read_frames

FRAMES = 16  # from the middle of every clip
KINDS = ("fvd", "is")


class ClipScores(NamedTuple):
    """Results of both commands, as their files hold them."""

    fvd: dict[str, Any]
    inception: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """`fvd_demo` (lower is better), `is_demo` (higher is better, at most the number of
        classes), `recognized`, the share of clips that the classifier takes for their class, and
        `clips`."""
        return {
            "fvd_demo": self.fvd["value"],
            "is_demo": self.inception["value"],
            "recognized": self.inception["accuracy"],
            "clips": self.fvd["protocol"]["clips_fake"],
        }


@dataclass(frozen=True, kw_only=True)
class ExperimentScores:
    """Scores sets of clips in one way, each set once."""

    commands: CommandStages
    records: Path
    """Folder of the stages' records."""
    results: Path
    """Folder of the commands' results: `<name>-fvd.json` and `<name>-is.json`."""
    classifier: Path
    """Export folder of train_classifier."""
    reference: Path
    """Shards of the real clips; all of them count."""
    num_clips: int
    """Clips of every set: the first in the order drawn by the seed."""
    size: tuple[int, int]
    """Height and width, pixels."""

    def score(
        self,
        name: str,
        clips: Path,
        options: Mapping[str, Any] | None = None,
        fvd_options: Mapping[str, Any] | None = None,
    ) -> ClipScores:
        """Scores of the `clips` of one folder; `options` go to both commands, `fvd_options` to
        eval_fvd alone."""
        height, width = self.size
        shared = {
            "fake": clips,
            "classifier": self.classifier,
            "frames": FRAMES,
            "num_clips": self.num_clips,
            "start_fake": "center",
            "skip_fake": 0,
            "height": height,
            "width": width,
            **(options or {}),
        }
        real = {"real": self.reference, "num_clips_real": "all"}
        real |= {"stride_real": 1, "start_real": "center", "resamples": 0}
        real |= fvd_options or {}
        found = []
        for kind, more in zip(KINDS, (real, {"runs": 1, "splits": 1}), strict=True):
            file = f"{name}-{kind}.json"
            given = {**shared, **more, "out": self.results / file}
            self.commands.run(self.records / file, f"eval_{kind}.py", given)
            found.append(read_json(self.results / file))
        return ClipScores(*found)


def count_samples(folder: Path) -> tuple[int, tuple[int, int]]:
    """How many clips `sample.py` left in a folder, and their height and width in pixels."""
    files = [clip["file"] for clip in read_json(folder / "samples.json")["clips"]]
    height, width = read_frames(folder / files[0], [0]).shape[1:3]
    return len(files), (height, width)
