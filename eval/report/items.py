"""What a page can show, as plain frozen data: tables, curves, videos. `page` draws it.

Every item checks itself when it is made: a mistake stops the run before anything is encoded.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import UInt8

Cell = str | float | int | None
Clip = UInt8[np.ndarray, "t h w 3"]


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
class Item:
    """A part of a section."""

    title: str
    caption: str = ""
    """What was measured, on what, how."""

    @property
    def kind(self) -> str:
        """Such as `table`."""
        return type(self).__name__.lower()

    def __post_init__(self) -> None:
        _require_title(self.title, self.kind)


@dataclass(frozen=True, kw_only=True)
class Table(Item):
    """Measured rows, and below them published ones for reference."""

    columns: Sequence[str | Column]
    """The first column names the rows."""
    rows: Sequence[Sequence[Cell]]
    """Measured values; `None` is shown as missing."""
    reference_rows: Sequence[PublishedRow] = ()
    """Published values: marked as such and left out of the choice of the best."""
    notes: Sequence[str] = ()
    """Footnotes."""
    unranked: Collection[str] = ()
    """First cells of measured rows that never are the best, such as baselines that compress
    nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = [*self.rows, *(row.cells for row in self.reference_rows)]
        if not self.columns or not rows:
            raise ValueError(f"table {self.title!r}: needs at least one column and one row.")
        for number, row in enumerate(rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {number} has {len(row)} cells for "
                    f"{len(self.columns)} columns."
                )


@dataclass(frozen=True, kw_only=True)
class Curve(Item):
    """Lines over a common x axis, such as losses over steps."""

    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    """Name to (xs, ys), xs ascending. Values that cannot be drawn (NaN; on a log axis, 0 and below)
    leave gaps, which the page counts."""
    log_y: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.series:
            raise ValueError(f"curve {self.title!r}: no series.")
        for name in self.series:
            where = f"curve {self.title!r}, series {name!r}"
            xs, ys = self.values(name)
            if xs.ndim != 1 or xs.shape != ys.shape:
                raise ValueError(
                    f"{where}: xs {xs.shape} and ys {ys.shape} must be two lists of one length."
                )
            if not np.isfinite(xs).all() or (np.diff(xs) < 0).any():
                raise ValueError(f"{where}: xs must be finite and ascending.")
            if not self.drawable(name).any():
                scale = " on a log axis" if self.log_y else ""
                raise ValueError(f"{where}: none of its {len(xs)} values can be drawn{scale}.")

    def values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The xs and ys of a series, float64, shape (n,) each."""
        xs, ys = self.series[name]
        return np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)

    def drawable(self, name: str) -> np.ndarray:
        """Which points of a series have a place on the axes, bool, shape (n,)."""
        _, ys = self.values(name)
        return np.isfinite(ys) & ((ys > 0) | (not self.log_y))


@dataclass(frozen=True, kw_only=True)
class Comparison(Item):
    """Clips of the same scene that play in step, each with a map of its error if wanted."""

    clips: Mapping[str, Clip]
    """All of one shape. The first is the reference."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Metric to its value for this scene: readers can choose and order scenes by them."""
    errors: bool = False
    """Whether the others' differences from the first are shown, with their PSNR per frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_shape(self.clips, f"comparison {self.title!r}")
        for name, value in self.scores.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"comparison {self.title!r}: score {name!r} is {value}; leave it out."
                )


@dataclass(frozen=True, kw_only=True)
class Gallery(Item):
    """Sample clips by class, each class as one grid that plays."""

    clips: Mapping[str, Sequence[Clip]]
    """Class name to its clips, of one shape within a class."""
    headings: Sequence[str] = ()
    """Of the columns of every grid, whose number they decide; none: no headings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clips:
            raise ValueError(f"gallery {self.title!r}: no classes.")
        for name, clips in self.clips.items():
            numbered = {str(number): clip for number, clip in enumerate(clips, 1)}
            _require_one_shape(numbered, f"gallery {self.title!r}, class {name!r}")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A named group of items."""

    title: str
    items: Sequence[Item]
    intro: Sequence[str] = ()
    """Paragraphs above the items."""

    def __post_init__(self) -> None:
        _require_title(self.title, "section")
        if not self.items:
            raise ValueError(f"section {self.title!r}: nothing in it. Leave the section out.")


def _require_title(title: str, kind: str) -> None:
    if not title.strip():
        raise ValueError(f"a {kind}'s title is empty.")


def _require_one_shape(clips: Mapping[str, Clip], where: str) -> None:
    if not clips:
        raise ValueError(f"{where}: no clips.")
    first, *others = clips
    for name in others:
        if clips[name].shape != clips[first].shape:
            raise ValueError(
                f"{where}: clip {name!r} has shape {clips[name].shape}, but {first!r} has"
                f" {clips[first].shape}. Clips shown together are of one shape."
            )
