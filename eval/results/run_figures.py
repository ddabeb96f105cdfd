"""Figures of what eval_reconstruction and sample.py wrote, each as a config that draws itself; and
the clips that figures of VAEs show."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, MinLen
from jaxtyping import Float
from torch import Tensor

from common.config import Config, Pixels, differences
from common.files import read_json
from data.video.decode import read_frames
from data.video.encode import to_uint8
from data.video.probe import probe
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.published.reconstructions import POSITIONS, PUBLISHED
from eval.report import plots

Place = Annotated[int, Ge(0)]
Columns = Annotated[tuple[Place, ...], MinLen(1)]
FRAMES = 5
"""Of a clip in a figure: an image frame and one group."""
SAME = ("frames", "stride", "size", "clips", "group", "content")
"""What runs must have in common to stand in one figure."""


@dataclass(frozen=True, kw_only=True)
class FigureConfig(Config):
    """A figure, and where it goes."""

    out: str
    """File to write, with the endings .png and .pdf."""

    @abstractmethod
    def draw(self) -> plots.Figure:
        """The figure.

        Raises:
            ValueError: what it shows is not there, or does not compare.
        """


@dataclass(frozen=True, kw_only=True)
class ClipOptions(FigureConfig):
    """Which clip a figure shows."""

    data: str
    """Folder of shards, videos or folders of frames."""
    id: str | None = None
    """Id of the video; null takes the first in order of a seeded draw."""
    height: Pixels = 256
    """Pixels."""
    width: Pixels = 256
    """Pixels."""

    def clip(self) -> Float[Tensor, "1 3 t h w"]:
        """The middle of the video."""
        size = {"height": self.height, "width": self.width}
        count = None if self.id else 1
        protocol = ClipProtocol(frames=FRAMES, start="center", num_clips=count, **size)
        source = ClipSource(self.data, protocol)
        if self.id is not None and self.id not in source.ids:
            raise ValueError(f"{self.data}: no video {self.id!r} of at least {FRAMES} frames")
        return source[source.ids.index(self.id) if self.id else 0][1][None]


@dataclass(frozen=True, kw_only=True)
class Comparison(FigureConfig):
    """Reconstructions side by side, with enlarged boxes and error maps (supplement, Figs. 3 to 6).

    Choose consecutive frames for long sequences; evaluate with --stride 3 for fast motion.
    """

    run: str
    """Folder that eval_reconstruction wrote."""
    clip: str = "000000"
    """Name of a saved clip."""
    methods: list[str] = field(default_factory=list)
    """Rows, one flag each; by default every method."""
    frames: Columns = (0, 1, 2, 3, 4)
    """Columns."""
    box: tuple[Place, Place, Place, Place] | None = None
    """What to enlarge: top, left, height, width, pixels; null takes the middle quarter."""
    gain: Annotated[float, Gt(0)] | None = None
    """Factor of the error maps; null chooses a power of two for all rows."""

    def draw(self) -> plots.Figure:
        folder = Path(self.run)
        known = list(read_json(folder / "metrics.json")["metrics"])
        methods = self.methods or known
        unknown = [name for name in methods if name not in known]
        if unknown:
            raise ValueError(f"{folder}: no method {unknown[0]!r}; there are {', '.join(known)}")
        clips = {}
        for name in ("source", *methods):
            file = folder / name / f"{self.clip}.mkv"
            if not file.is_file():
                raise ValueError(
                    f"{file}: no such clip. eval_reconstruction --save_clips writes more."
                )
            clips[name] = read_frames(file, range(probe(file).frames))
        h, w = clips["source"].shape[1:3]
        box = self.box or (h * 3 // 8, w * 3 // 8, h // 4, w // 4)
        return plots.comparison(clips, self.frames, box, self.gain)


@dataclass(frozen=True, kw_only=True)
class Positions(FigureConfig):
    """SSIM by position in the frame group, beside the paper's (supplement, Fig. 1 and Table 5)."""

    run: list[str]
    """Folders that eval_reconstruction wrote, one flag each."""

    def draw(self) -> plots.Figure:
        curves = {
            name: scores["ssim_by_position"]["positions"] for name, scores, _ in _methods(self.run)
        }
        published = {
            f"{row.method} ({row.table})": [row.values[name] for name in POSITIONS[:-1]]
            for row in PUBLISHED
            if "margin" in row.values
        }
        return plots.positions(curves, published)


@dataclass(frozen=True, kw_only=True)
class Preservation(FigureConfig):
    """Information preservation degree against latent channels (paper, Fig. 1)."""

    run: list[str]
    """Folders that eval_reconstruction wrote, one flag each."""
    pixels: Literal["[-1,1]", "[0,1]"] = "[-1,1]"
    """Range of the pixels in Eq. 2: [-1,1] or [0,1]."""

    def draw(self) -> plots.Figure:
        points = {
            name: (method["config"]["z_dim"], scores["information_preservation"][self.pixels])
            for name, scores, method in _methods(self.run)
            if method and self.pixels in scores["information_preservation"]
        }
        if not points:
            raise ValueError(f"{', '.join(self.run)}: no VAE with pixels={self.pixels}")
        return plots.preservation(points, self.pixels)


@dataclass(frozen=True, kw_only=True)
class Samples(FigureConfig):
    """Frames of generated clips, one clip per row (supplement, Figs. 8 and 9)."""

    data: list[str]
    """Folders of generated videos, one flag each: one per VAE."""
    num_clips: Annotated[int, Ge(1)] = 3
    """Rows of each folder."""
    frames: Columns = (0, 4, 8, 12, 16)
    """Columns."""

    def draw(self) -> plots.Figure:
        rows = {}
        for folder in self.data:
            protocol = ClipProtocol(
                frames=max(self.frames) + 1, start="first", num_clips=self.num_clips
            )
            source = ClipSource(folder, protocol, generated=True)
            for id, clip in (source[i] for i in range(len(source))):
                frames = to_uint8(clip)
                rows[f"{Path(folder).name}/{id}"] = [frames[i] for i in self.frames]
        return plots.picture_grid(rows, [f"frame {i}" for i in self.frames])


def _methods(runs: Sequence[str]) -> list[tuple[str, dict, dict]]:
    """Name, scores and description of every method of the runs; names tell the run if several."""
    found = []
    results = {run: read_json(Path(run) / "metrics.json") for run in runs}
    for run, result in results.items():
        first, other = (results[r]["protocol"] for r in (runs[0], run))
        if changes := [c for k in SAME for c in differences(first.get(k), other.get(k), name=k)]:
            raise ValueError(
                f"{run} and {runs[0]} do not compare: {'; '.join(changes)}. Measure all on one set "
                "of clips by one protocol."
            )
        for name, scores in result["metrics"].items():
            label = name if len(runs) == 1 else f"{Path(run).name}: {name}"
            found.append((label, scores, result["methods"][name]))
    return found
