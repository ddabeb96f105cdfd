"""The paper's figures as matplotlib drawings, readable at print size; saved as PNG and PDF."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from engine.files import atomic_path

Clip = UInt8[np.ndarray, "t h w 3"]
Box = tuple[int, int, int, int]
"""Top, left, height, width; pixels."""

INCHES = 1.5  # width of a picture in a grid
FONT = 8  # points
RED = "#d62728"


def save_figure(figure: Figure, path: str | Path) -> list[Path]:
    """Write `path` with the endings .png (200 dots per inch) and .pdf; returns both."""
    written = []
    for ending in (".png", ".pdf"):
        target = Path(path).with_suffix(ending)
        metadata = {"CreationDate": None} if ending == ".pdf" else {}
        with atomic_path(target) as temporary:
            figure.savefig(temporary, dpi=200, bbox_inches="tight", metadata=metadata)
        written.append(target)
    return written


def picture_grid(
    rows: Mapping[str, Sequence[np.ndarray]],
    columns: Sequence[str],
    box: Box | None = None,
    boxed: Sequence[str] = (),
) -> Figure:
    """Pictures in rows with names; all are shown without smoothing.

    Args:
        rows: name to pictures, uint8 `h w 3`, or float `h w` in [-1, 1] shown in grey.
        columns: heading of each column.
        box: drawn in red on the rows named in `boxed`.
        boxed: see `box`.
    """
    first = next(iter(rows.values()))[0]
    aspect = first.shape[0] / first.shape[1]
    figure = Figure(figsize=(INCHES * len(columns) + 1, INCHES * aspect * len(rows) + 0.4))
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=-1 if picture.ndim == 2 else None, vmax=1)
            axis.set(xticks=[], yticks=[])
            if box and name in boxed:
                top, left, height, width = box
                frame = Rectangle((left, top), width, height, fill=False, color=RED, linewidth=1)
                axis.add_patch(frame)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=FONT)
    for axis, heading in zip(axes[0], columns, strict=True):
        axis.set_title(heading, fontsize=FONT)
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    return figure


def comparison(
    clips: Mapping[str, Clip], frames: Sequence[int], box: Box | None = None, gain: float = 4
) -> Figure:
    """Reconstructions under their source, each with its zoomed box and its error (Figs. 3 to 7).

    Args:
        clips: name to clip; the first is the source.
        frames: which frames, one column each.
        box: what is enlarged; None enlarges nothing.
        gain: factor of the absolute error; the row's name states it.

    Raises:
        ValueError: a frame or a box that is not in the clip.
    """
    source_name, source = next(iter(clips.items()))
    t, h, w = source.shape[:3]
    if not frames or min(frames) < 0 or max(frames) >= t:
        raise ValueError(f"frames {list(frames)} must be in 0 to {t - 1}")
    if box and not (
        min(box) >= 0 and min(box[2:]) > 0 and box[0] + box[2] <= h and box[1] + box[3] <= w
    ):
        raise ValueError(f"box {box} (top, left, height, width) must lie in {h}x{w}")
    rows: dict[str, list[np.ndarray]] = {}
    for name, clip in clips.items():
        rows[name] = [clip[i] for i in frames]
        if box:
            top, left, height, width = box
            part = [clip[i, top : top + height, left : left + width] for i in frames]
            rows[f"{name}, enlarged"] = [_enlarged(picture, h, w) for picture in part]
        if name != source_name:
            error = np.abs(clip[list(frames)].astype(float) - source[list(frames)])
            amplified = (gain * error).clip(0, 255).astype(np.uint8)
            rows[f"{name}, error x {gain:g}"] = list(amplified)
    return picture_grid(rows, [f"frame {i}" for i in frames], box, list(clips))


def latent_channels(maps: Float[np.ndarray, "z t h w"], frame: int) -> Figure:
    """One latent frame's channels, brought to [-1, 1] by Eq. 6 (Fig. 10), keyframe half first."""
    half = (len(maps) + 1) // 2
    rows = {
        "keyframe branch": list(maps[:half, frame]),
        "motion branch": list(maps[half:, frame]),
    }
    blank = np.zeros_like(maps[0, frame])
    for pictures in rows.values():
        pictures += [blank] * (half - len(pictures))
    return picture_grid(rows, [f"{i + 1}" for i in range(half)])


def positions(
    curves: Mapping[str, Sequence[float]], published: Mapping[str, Sequence[float]]
) -> Figure:
    """SSIM at each position of the frame group (Fig. 1, Table 5); published curves are grey."""
    figure = Figure(figsize=(4.5, 3))
    axis = figure.subplots()
    styles = ("-", "--", "-.", ":")
    for i, (name, values) in enumerate(published.items()):
        style = styles[i % len(styles)]
        axis.plot(range(1, len(values) + 1), values, style, color="0.6", label=name)
    for name, values in curves.items():
        axis.plot(range(1, len(values) + 1), values, "o-", label=name)
    longest = max(map(len, (*curves.values(), *published.values())))
    axis.set_xticks(range(1, longest + 1))
    axis.set(xlabel="frame in its group", ylabel="SSIM")
    axis.legend(fontsize=FONT - 1, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def preservation(points: Mapping[str, tuple[int, float]], pixels: str) -> Figure:
    """Information preservation degree (Eq. 2) against the latent channels (paper, Fig. 1).

    Args:
        points: name to latent channels and degree.
        pixels: range of the pixels that Eq. 2 was computed on.
    """
    figure = Figure(figsize=(4.5, 3))
    axis = figure.subplots()
    for name, (channels, degree) in points.items():
        axis.plot(channels, degree, "o", label=name)
    axis.set_xscale("log", base=2)
    ticks = sorted({channels for channels, _ in points.values()})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set(xlabel="latent channels z", ylabel=f"information preserved, pixels in {pixels}")
    axis.legend(fontsize=FONT - 1, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def with_caption(clip: Clip, start: int, text: str = "SUDDEN CAPTION 0123") -> Clip:
    """A copy with white text on a dark band near the bottom, from frame `start` on (Fig. 7).

    Raises:
        ValueError: `start` is not one of the frames.
    """
    if not 0 <= start < len(clip):
        raise ValueError(f"start={start} must be in 0 to {len(clip) - 1}")
    h, w = clip.shape[1:3]
    font = _font_that_fits(text, w, h // 8)
    top, height = int(0.8 * h), int(0.14 * h)
    frames = []
    for i, frame in enumerate(clip):
        image = Image.fromarray(frame)
        if i >= start:
            draw = ImageDraw.Draw(image)
            draw.rectangle((0, top, w, top + height), fill=(16, 16, 16))
            middle = (w // 2, top + height // 2)
            draw.text(middle, text, fill=(255, 255, 255), font=font, anchor="mm")
        frames.append(np.asarray(image))
    return np.stack(frames)


def _font_that_fits(text: str, width: int, most: int) -> ImageFont.FreeTypeFont:
    """The largest font of at most `most` pixels in which `text` takes 95 % of `width`."""
    for size in range(max(most, 4), 3, -1):
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        if font.getlength(text) <= 0.95 * width:
            return font
    raise ValueError(f"the text {text!r} is too long for {width} pixels. Use a shorter one.")


def _enlarged(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> np.ndarray:
    """As large as fits into `height` x `width`, the aspect kept, the rest white."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    large = Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(large, ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(canvas)
