"""The arithmetic of a page: numbers as text, lines as SVG coordinates, clips as pictures."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.ticker import LogLocator, MaxNLocator

from common.psnr import psnr_from_mse

MISSING = "–"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
CANVAS = 1000  # SVG units along each side of a plot; the page stretches them
INK = 22  # gray level between the clips of one video


def format_number(value: object, decimals: int | None = None) -> str:
    """A cell as text: thousands grouped, about four significant digits, `–` for missing.

    Args:
        value: text (returned as is), a number, or None.
        decimals: digits after the point of a number that is not an integer; None chooses.
    """
    if value is None:
        return MISSING
    if isinstance(value, Integral) and decimals is None:
        return _minus(f"{int(value):,}")
    if not isinstance(value, Real):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else _minus("∞" if number > 0 else "-∞")
    if decimals is not None:
        return _minus(f"{number:,.{decimals}f}")
    if number and not 1e-3 <= abs(number) < 1e7:
        mantissa, exponent = f"{number:.2e}".split("e")
        return _minus(f"{mantissa}×10") + str(int(exponent)).translate(SUPERSCRIPTS)
    return _minus(f"{number:,.{_decimals([abs(number)])}f}")


def column_decimals(values: Sequence[object]) -> int | None:
    """Decimals that suit all numbers of a column, None where they need different ones."""
    numbers = [abs(float(v)) for v in values if isinstance(v, Real)]
    numbers = [number for number in numbers if number and math.isfinite(number)]
    if not numbers or all(isinstance(v, Integral) for v in values if isinstance(v, Real)):
        return None
    readable = max(numbers) < 1e7 and min(numbers) >= 10.0 ** (1 - _decimals(numbers))
    return _decimals(numbers) if readable else None


def _decimals(magnitudes: Sequence[float]) -> int:
    """Digits after the point: four significant ones of the largest, fewer where all are round."""
    largest = max(magnitudes)
    most = min(max(3 - math.floor(math.log10(largest)), 0), 6) if largest else 0
    fractions = [f"{magnitude:.{most}f}".partition(".")[2].rstrip("0") for magnitude in magnitudes]
    return max(map(len, fractions))


def _minus(text: str) -> str:
    return text.replace("-", "−")


@dataclass(frozen=True)
class Axis:
    """Maps values in [low, high] to [0, 1], linearly or by logarithm."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    """Only whole numbers get ticks."""

    @classmethod
    def around(cls, values: Float[np.ndarray, " n"], *, log: bool, margin: float) -> "Axis":
        """The axis that holds finite `values` (positive if `log`) with a relative margin."""
        scaled = np.log10(values) if log else values
        low, high = float(scaled.min()), float(scaled.max())
        alone = 0.5 if log else abs(low) / 2 or 0.5
        pad = margin * (high - low) if high > low else alone
        low, high = low - pad, high + pad
        if log:
            return cls(10**low, 10**high, log=True)
        return cls(low, high, whole=bool((values == np.rint(values)).all()))

    def place(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Values to fractions of the axis."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            return (np.log10(values) - low) / (high - low)
        return (values - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values inside the axis: (fraction of the axis, label)."""
        decades = math.log10(self.high / self.low) if self.log else 0.0
        if decades >= 1:
            subdivisions = (1.0,) if decades > 3 else (1.0, 2.0, 5.0)
            locator = LogLocator(subs=subdivisions, numticks=8)
        else:
            locator = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=self.whole)
        values = np.asarray(locator.tick_values(self.low, self.high), dtype=np.float64)
        slack = 1e-9 * (self.high - self.low)
        values = values[(values >= self.low - slack) & (values <= self.high + slack)]
        labels = [_tick_label(value) for value in values.tolist()]
        return list(zip(self.place(values).tolist(), labels, strict=True))


def _tick_label(value: float) -> str:
    value = float(f"{value:.6g}")  # 0.30000000000000004 is a tick at 0.3
    for start, unit, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if start <= abs(value) < 1e12:
            return _minus(f"{value / unit:g}{suffix}")
    if value and not 1e-4 <= abs(value) < 1e12:
        return _minus(f"{value:.3g}".replace("e-0", "e-").replace("e+", "e"))
    return _minus(f"{value:,.10g}")


def thin(
    xs: Float[np.ndarray, " n"], ys: Float[np.ndarray, " n"], limit: int = 1000
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """At most about `limit` points that draw the same line: extremes, ends and gaps of equal spans.

    Args:
        xs: ascending.
        ys: NaN marks a gap.
    """
    if len(xs) <= limit:
        return xs, ys
    keep: set[int] = {len(xs) - 1}
    for span in np.array_split(np.arange(len(xs)), limit // 4):
        finite = span[np.isfinite(ys[span])]
        keep.add(int(span[0]))
        keep.update(int(i) for i in span[np.isnan(ys[span])][:1])
        if len(finite):
            keep.update((int(finite[ys[finite].argmin()]), int(finite[ys[finite].argmax()])))
    chosen = sorted(keep)
    return xs[chosen], ys[chosen]


def line_path(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> str:
    """SVG path through points given as fractions of the axes, y upwards; broken where y is NaN."""
    parts: list[str] = []
    pen_down = False
    for px, py in zip((x * CANVAS).tolist(), ((1 - y) * CANVAS).tolist(), strict=True):
        if shown := not math.isnan(py):
            parts.append(f"L{px:.1f} {py:.1f}" if pen_down else f"M{px:.1f} {py:.1f}h0")
        pen_down = shown
    return "".join(parts)


def dots_path(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> str:
    """SVG path with a zero-length piece at each point: round caps make it a dot at any stretch."""
    pairs = zip((x * CANVAS).tolist(), ((1 - y) * CANVAS).tolist(), strict=True)
    return "".join(f"M{px:.1f} {py:.1f}h0" for px, py in pairs if not math.isnan(py))


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Clips of one size laid out in rows on one clip, so that they can only play in step."""

    height: int
    """Of one clip, pixels."""
    width: int
    count: int
    """Number of clips."""
    columns: int
    factor: int
    """Every pixel is repeated so often both ways."""
    gap: int
    """Pixels between clips, even; 16 and more keep the codec's blocks of neighbors apart."""

    @classmethod
    def layout(cls, clips: Sequence[np.ndarray], *, target: int, gap: int) -> "Sheet":
        """Rows of at most four: a little wider than high, with few empty places.

        Args:
            clips: `t h w 3` each, of one shape.
            target: length the longer side of small clips is enlarged to, about, pixels.
        """
        count = len(clips)

        def cost(columns: int) -> float:
            rows = math.ceil(count / columns)
            return abs(columns - 1.6 * rows) + 0.5 * (rows * columns - count)

        columns = min(range(1, min(4, count) + 1), key=cost)
        _, height, width, _ = clips[0].shape
        factor = max(1, round(target / max(height, width)))
        if factor > 1:
            factor -= factor % 2  # 4:2:0 chroma keeps colors sharp only at even edges
        return cls(height=height, width=width, count=count, columns=columns, factor=factor, gap=gap)

    @property
    def clip_size(self) -> tuple[int, int]:
        """(height, width) of one clip on the sheet."""
        return self.height * self.factor, self.width * self.factor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the sheet, even."""
        bottom, right = self.corner(self.count - 1)[0], self.corner(self.columns - 1)[1]
        height, width = self.clip_size
        return _even(bottom + height), _even(right + width)

    def corner(self, index: int) -> tuple[int, int]:
        """(top, left) of clip `index`, even."""
        row, column = divmod(index, self.columns)
        height, width = self.clip_size
        return row * (_even(height) + self.gap), column * (_even(width) + self.gap)

    def frames(
        self, clips: Sequence[UInt8[np.ndarray, "t h w 3"]]
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The frames of the sheet, one at a time."""
        height, width = self.clip_size
        for images in zip(*clips, strict=True):
            sheet = np.full((*self.size, 3), INK, dtype=np.uint8)
            for index, image in enumerate(images):
                top, left = self.corner(index)
                large = image.repeat(self.factor, axis=0).repeat(self.factor, axis=1)
                sheet[top : top + height, left : left + width] = large
            yield sheet


def _even(length: int) -> int:
    return length + length % 2


def absolute_error(
    clip: UInt8[np.ndarray, "t h w 3"], reference: UInt8[np.ndarray, "t h w 3"]
) -> Float[np.ndarray, "t h w"]:
    """Mean over channels of |clip - reference|, gray levels in [0, 255]."""
    difference = clip.astype(np.int16) - reference.astype(np.int16)
    return np.abs(difference).mean(axis=3, dtype=np.float32)


def automatic_gain(errors: Sequence[Float[np.ndarray, "t h w"]]) -> float:
    """One power of two in [1, 32] for several error maps, so that they compare.

    It brings the geometric mean of their 99.5th percentiles within 255: a good clip's error becomes
    visible, a bad one's may saturate.
    """
    levels = [max(float(np.percentile(error, 99.5)), 1.0) for error in errors]
    level = math.exp(sum(map(math.log, levels)) / len(levels))
    return float(2 ** min(max(math.floor(math.log2(255 / level)), 0), 5))


def paint_error(error: Float[np.ndarray, "t h w"], gain: float) -> UInt8[np.ndarray, "t h w 3"]:
    """Error times gain through the perceptually uniform map inferno; 255 and more is brightest."""
    palette = np.asarray(colormaps["inferno"](np.arange(256), bytes=True))[:, :3]
    return palette[np.clip(np.rint(error * gain), 0, 255).astype(np.uint8)]


def psnr_per_frame(
    clip: UInt8[np.ndarray, "t h w 3"], reference: UInt8[np.ndarray, "t h w 3"]
) -> list[float]:
    """PSNR of each frame, dB; infinite for equal frames."""
    errors = ((clip.astype(np.float64) - reference) ** 2).mean(axis=(1, 2, 3))
    return psnr_from_mse(torch.from_numpy(errors), peak=255, cap=math.inf).tolist()
