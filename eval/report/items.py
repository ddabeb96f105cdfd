"""What a report says, as plain frozen data: facts, tables, curves, videos. `page` draws it.

Every item checks itself when it is made: a mistake stops the run before anything is encoded.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

import numpy as np

Cell = str | float | int | None


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One key figure, shown as a card."""

    label: str
    """What is measured, such as `PSNR`."""
    value: Cell
    """The figure; `None` is shown as missing."""
    unit: str = ""
    """Its unit, such as `dB`."""
    note: str = ""
    """One short line of context: sample counts, the baseline it beats."""

    def __post_init__(self) -> None:
        _require_text(self.label, "a fact's label")
        _require_cell(self.value, f"fact {self.label!r}")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A table column: its name, and how its numbers are to be read."""

    name: str
    """Heading."""
    unit: str = ""
    """Unit, shown beside the heading."""
    better: Literal["high", "low"] | None = None
    """Which direction is better; the best measured value is then marked."""
    decimals: int | None = None
    """Digits after the point; `None` chooses about four significant digits for the column."""

    def __post_init__(self) -> None:
        if self.better not in ("high", "low", None):
            raise ValueError(
                f"column {self.name!r}: better={self.better!r}; use 'high', 'low' or None."
            )
        if self.decimals is not None and self.decimals < 0:
            raise ValueError(f"column {self.name!r}: decimals={self.decimals} must be 0 or more.")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """Published numbers, or a row that could not be measured: shown in gray under the measured
    rows, never compared."""

    cells: Sequence[Cell]
    """One value per column; `None` where nothing was published."""
    source: str
    """Where they were published, such as `paper, Table 1`, or why there are none."""
    setting: str = ""
    """On what they were measured; rows of one source and setting stand together on the page."""

    @property
    def labeled_cells(self) -> Sequence[Cell]:
        """The cells, the setting beside the name: for forms without groups."""
        first, *others = self.cells
        return [f"{first} ({self.setting})" if self.setting else first, *others]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Measured rows, and below them published ones for reference."""

    title: str
    columns: Sequence[str | Column]
    """The first column names the rows."""
    rows: Sequence[Sequence[Cell]]
    """Measured values; `None` is shown as missing."""
    caption: str = ""
    """What was measured, on what, how."""
    reference_rows: Sequence[PublishedRow] = ()
    """Published values: marked as such and left out of the choice of the best."""
    notes: Sequence[str] = ()
    """Footnotes."""
    unranked: Collection[str] = ()
    """First cells of measured rows that never are the best, such as baselines that compress
    nothing."""

    def __post_init__(self) -> None:
        where = f"table {self.title!r}"
        _require_text(self.title, "a table's title")
        if not self.columns or not (self.rows or self.reference_rows):
            raise ValueError(f"{where}: needs at least one column and one row.")
        width = len(self.columns)
        for kind, rows in {
            "row": self.rows,
            "published row": [row.cells for row in self.reference_rows],
        }.items():
            for number, row in enumerate(rows, 1):
                if isinstance(row, str) or len(row) != width:
                    raise ValueError(
                        f"{where}: {kind} {number} has {len(row)} cells for {width} columns."
                    )
                for cell in row:
                    _require_cell(cell, f"{where}, {kind} {number}")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Lines over a common x axis, such as losses over steps."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    """Name to (xs, ys), xs ascending. Values that cannot be drawn (NaN; on a log axis, 0 and below)
    leave gaps, which the page counts."""
    caption: str = ""
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        where = f"curve {self.title!r}"
        _require_text(self.title, "a curve's title")
        if not self.series:
            raise ValueError(f"{where}: no series.")
        for name in self.series:
            xs, ys = self.values(name)
            if xs.ndim != 1 or xs.shape != ys.shape:
                raise ValueError(
                    f"{where}, series {name!r}: xs {xs.shape} and ys {ys.shape} must be two lists"
                    " of one length."
                )
            if not np.isfinite(xs).all() or (np.diff(xs) < 0).any():
                raise ValueError(f"{where}, series {name!r}: xs must be finite and ascending.")
            if not self.drawable(name).any():
                scale = " on a log axis" if self.log_x or self.log_y else ""
                raise ValueError(
                    f"{where}, series {name!r}: none of its {len(xs)} values can be drawn{scale}."
                )

    def values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The xs and ys of a series, float64, shape (n,) each."""
        xs, ys = self.series[name]
        return np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)

    def drawable(self, name: str) -> np.ndarray:
        """Which points of a series have a place on the axes, bool, shape (n,)."""
        xs, ys = self.values(name)
        return np.isfinite(ys) & ((xs > 0) | (not self.log_x)) & ((ys > 0) | (not self.log_y))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Clips of the same scene that play in step, each with a map of its error if wanted."""

    title: str
    clips: Mapping[str, np.ndarray]
    """Name to uint8 `t h w c`, all of one shape. The first is the reference."""
    fps: float
    """Frames per second at which the clips play."""
    caption: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Metric to its value for this scene: readers can choose and order scenes by them."""
    error_of: Sequence[str] = ()
    """Clips whose difference from the first one is shown, with its PSNR per frame."""
    gain: float | None = None
    """Amplification of all error maps; `None` chooses a power of two. The page states it."""

    def __post_init__(self) -> None:
        where = f"comparison {self.title!r}"
        _require_text(self.title, "a comparison's title")
        if not self.clips:
            raise ValueError(f"{where}: no clips.")
        for name, clip in self.clips.items():
            _require_clip(clip, f"{where}, clip {name!r}")
        _require_one_shape(self.clips, where)
        reference = next(iter(self.clips))
        for name in self.error_of:
            if name not in self.clips or name == reference:
                allowed = ", ".join(repr(name) for name in list(self.clips)[1:]) or "none"
                raise ValueError(f"{where}: error_of names {name!r}; allowed are {allowed}.")
        for name, value in self.scores.items():
            if not math.isfinite(value):
                raise ValueError(f"{where}: score {name!r} is {value}; leave it out.")
        if self.gain is not None and not (math.isfinite(self.gain) and self.gain > 0):
            raise ValueError(f"{where}: gain={self.gain} must be a positive number.")
        _require_fps(self.fps, where)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Sample clips by class, each class as one grid that plays."""

    title: str
    clips: Mapping[str, Sequence[np.ndarray]]
    """Class name to its clips, uint8 `t h w c`, of one shape within a class."""
    fps: float
    """Frames per second at which the clips play."""
    caption: str = ""
    headings: Sequence[str] = ()
    """Of the columns of every grid, whose number they decide; none: no headings."""

    def __post_init__(self) -> None:
        where = f"gallery {self.title!r}"
        _require_text(self.title, "a gallery's title")
        if not self.clips:
            raise ValueError(f"{where}: no classes.")
        for name, clips in self.clips.items():
            if not len(clips):
                raise ValueError(f"{where}, class {name!r}: no clips. Leave the class out.")
            for number, clip in enumerate(clips, 1):
                _require_clip(clip, f"{where}, class {name!r}, clip {number}")
            numbered = {str(number): clip for number, clip in enumerate(clips, 1)}
            _require_one_shape(numbered, f"{where}, class {name!r}")
        _require_fps(self.fps, where)


Item = Table | Curve | Comparison | Gallery


@dataclass(frozen=True, kw_only=True)
class Section:
    """A named group of items."""

    title: str
    items: Sequence[Item]
    intro: Sequence[str] = ()
    """Paragraphs above the items."""

    def __post_init__(self) -> None:
        _require_text(self.title, "a section's title")
        if not self.items:
            raise ValueError(f"section {self.title!r}: nothing in it. Leave the section out.")


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole page."""

    title: str
    sections: Sequence[Section]
    summary: Sequence[str] = ()
    """Paragraphs under the title: what was done, what came out, what it does not show."""
    opening: Gallery | None = None
    """Pictures under the first paragraph, before anything else."""
    facts: Sequence[Fact] = ()
    """Key figures, shown as cards."""
    provenance: Mapping[str, object]
    """How the page came to be: command, versions, date, seed, hashes. Values are shown as text."""

    def __post_init__(self) -> None:
        _require_text(self.title, "a report's title")
        if isinstance(self.summary, str):
            raise ValueError("a report's summary is a list of paragraphs, not one string.")
        if not self.sections and self.opening is None:
            raise ValueError(f"report {self.title!r}: no sections, nothing to show.")
        if not self.provenance:
            raise ValueError(
                f"report {self.title!r}: no provenance. Say at least which command made it."
            )


def _require_text(text: str, where: str) -> None:
    if not text.strip():
        raise ValueError(f"{where} is empty.")


def _require_cell(cell: object, where: str) -> None:
    if cell is not None and not isinstance(cell, str | Real):
        raise ValueError(
            f"{where}: got {type(cell).__name__}; a cell is text, a number or None (missing)."
        )


def _require_clip(clip: np.ndarray, where: str) -> None:
    if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8:
        kind = getattr(clip, "dtype", type(clip).__name__)
        raise ValueError(
            f"{where}: got {kind}; a clip is a uint8 array (data.video.encode.to_uint8)."
        )
    if clip.ndim != 4 or clip.shape[3] != 3 or not clip.size:
        raise ValueError(f"{where}: got shape {clip.shape}; a clip is t h w 3, none of them 0.")


def _require_one_shape(clips: Mapping[str, np.ndarray], where: str) -> None:
    first, *others = clips
    for name in others:
        if clips[name].shape != clips[first].shape:
            raise ValueError(
                f"{where}: clip {name!r} has shape {clips[name].shape}, but {first!r} has"
                f" {clips[first].shape}. Clips shown together are of one shape."
            )


def _require_fps(fps: float, where: str) -> None:
    if not 0.1 <= fps <= 1000:
        raise ValueError(f"{where}: fps={fps} must be between 0.1 and 1000.")
