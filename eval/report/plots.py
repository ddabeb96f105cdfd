"""The paper's figures as matplotlib drawings, readable at print size; saved as PNG and PDF."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont, ImageOps

from common.files import atomic_path
from eval.report.drawing import absolute_error, automatic_gain, paint_error
from eval.report.items import Clip

Box = tuple[int, int, int, int]
"""Top, left, height, width; pixels."""

PAGE = (7.0, 9.0)  # inches: the text block of a printed page
INCHES = 1.5  # most that a picture in a grid is wide
LABEL, HEAD, GAP = 1.3, 0.25, 0.04  # inches: for names, for headings, between pictures
FONT = 7  # points
RED = "#d62728"
NEAREST = Image.Resampling.NEAREST
LEGEND: Any = {"loc": "outside center right", "fontsize": FONT, "frameon": False}


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
    boxes: Mapping[str, Box] | None = None,
) -> Figure:
    """Pictures in rows with names, without smoothing, as large as a printed page lets them be.

    Args:
        rows: name to pictures, uint8 `h w 3`, or float `h w` in [-1, 1] shown in gray; all of the
            first one's aspect.
        columns: heading of each column.
        boxes: name of a row to what is framed in red on its pictures.
    """
    first = next(iter(rows.values()))[0]
    aspect = first.shape[0] / first.shape[1]
    width = min(INCHES, (PAGE[0] - LABEL) / len(columns), (PAGE[1] - HEAD) / len(rows) / aspect)
    size = (LABEL + width * len(columns), HEAD + width * aspect * len(rows))
    figure = Figure(figsize=size)
    for r, (name, pictures) in enumerate(rows.items()):
        for c, picture in enumerate(pictures):
            left, top = LABEL + c * width, HEAD + r * width * aspect
            inside = width - GAP, width * aspect - GAP
            corner = left / size[0], 1 - (top + inside[1]) / size[1]
            axis = figure.add_axes((*corner, inside[0] / size[0], inside[1] / size[1]))
            axis.imshow(picture, cmap="gray", vmin=-1 if picture.ndim == 2 else None, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if boxes and name in boxes:
                y, x, height, length = boxes[name]
                frame = Rectangle((x, y), length, height, fill=False, color=RED, linewidth=1)
                axis.add_patch(frame)
            if c == 0:
                axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=FONT)
            if r == 0:
                axis.set_title(columns[c], fontsize=FONT, pad=3)
    return figure


def comparison(
    clips: Mapping[str, Clip], frames: Sequence[int], box: Box, gain: float | None = None
) -> Figure:
    """Reconstructions under their source, each with its zoomed box and its error (Figs. 3 to 7).

    Args:
        clips: name to clip; the first is the source.
        frames: which frames, one column each.
        box: what is enlarged.
        gain: factor of the error, its mean over the channels from black (0) to yellow (255 and
            more); the rows' names state it. None chooses one power of two for all.

    Raises:
        ValueError: a frame or a box that is not in the clip.
    """
    source_name, source = next(iter(clips.items()))
    t, h, w = source.shape[:3]
    if not frames or min(frames) < 0 or max(frames) >= t:
        raise ValueError(f"frames {list(frames)} must be in 0 to {t - 1}")
    top, left, height, width = box
    if min(box) < 0 or min(height, width) < 1 or top + height > h or left + width > w:
        raise ValueError(f"box {box} (top, left, height, width) must lie in {h}x{w}")
    shown = {name: clip[list(frames)] for name, clip in clips.items()}
    errors = {n: absolute_error(clip, shown[source_name]) for n, clip in shown.items()}
    del errors[source_name]
    gain = gain or (automatic_gain(list(errors.values())) if errors else 1.0)
    rows: dict[str, list[np.ndarray]] = {}
    for name, clip in shown.items():
        rows[name] = list(clip)
        rows[f"{name}, enlarged"] = [
            np.asarray(ImageOps.pad(Image.fromarray(part), (w, h), NEAREST, "white"))
            for part in clip[:, top : top + height, left : left + width]
        ]
        if name in errors:
            rows[f"{name}, error x {gain:g}"] = list(paint_error(errors[name], gain))
    return picture_grid(rows, [f"frame {i}" for i in frames], dict.fromkeys(clips, box))


def latent_channels(
    maps: Float[np.ndarray, "z t h w"], frame: int, group: Sequence[UInt8[np.ndarray, "h w 3"]]
) -> Figure:
    """One latent frame's channels, brought to [-1, 1] by Eq. 6, under its frames (Fig. 10).

    Args:
        maps: normalized channels, the keyframe branch's first.
        frame: which latent frame.
        group: the video's frames that this latent frame stands for.
    """
    half = (len(maps) + 1) // 2
    columns = max(half, len(group))
    blank = np.ones_like(maps[0, frame])
    rows: dict[str, list[np.ndarray]] = {
        "frames": list(group),
        f"keyframe branch, 1-{half}": list(maps[:half, frame]),
        f"motion branch, {half + 1}-{len(maps)}": list(maps[half:, frame]),
    }
    for pictures in rows.values():
        pictures += [blank] * (columns - len(pictures))
    return picture_grid(rows, [""] * columns)


def positions(
    curves: Mapping[str, Sequence[float]], published: Mapping[str, Sequence[float]]
) -> Figure:
    """SSIM at each position of the frame group, and how far it lies from the group's mean.

    Published curves are gray (Fig. 1, Table 5). The second part shows the imbalance, whatever the
    methods' levels.
    """
    figure = Figure(figsize=(PAGE[0], 2.6), layout="constrained")
    level, offset = figure.subplots(1, 2)
    styles = ("-", "--", "-.", ":")
    drawn = [
        *((name, v, styles[i % 4], "0.55") for i, (name, v) in enumerate(published.items())),
        *((name, v, "o-", None) for name, v in curves.items()),
    ]
    for axis in (level, offset):
        for name, values, style, color in drawn:
            places = range(1, len(values) + 1)
            shift = np.mean(values) if axis is offset else 0
            axis.plot(places, np.array(values) - shift, style, color=color, label=name, ms=3, lw=1)
        axis.set_xticks(range(1, max(len(values) for _, values, _, _ in drawn) + 1))
        axis.tick_params(labelsize=FONT)
        axis.set_xlabel("frame in its group", fontsize=FONT)
    level.set_ylabel("SSIM", fontsize=FONT)
    offset.set_ylabel("SSIM - mean of the group", fontsize=FONT)
    figure.legend(*level.get_legend_handles_labels(), **LEGEND)
    return figure


def preservation(points: Mapping[str, tuple[int, float]], pixels: str) -> Figure:
    """Information preservation degree (Eq. 2) against the latent channels (paper, Fig. 1).

    Args:
        points: name to latent channels and degree.
        pixels: range of the pixels that Eq. 2 was computed on.
    """
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axis = figure.subplots()
    for name, (channels, degree) in points.items():
        axis.plot(channels, degree, "o", label=name, ms=4)
    axis.set_xscale("log", base=2)
    ticks = sorted({channels for channels, _ in points.values()})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.tick_params(labelsize=FONT)
    axis.set_xlabel("latent channels z", fontsize=FONT)
    axis.set_ylabel(f"information preserved (Eq. 2),\npixels in {pixels}", fontsize=FONT)
    figure.legend(**LEGEND)
    return figure


def with_caption(clip: Clip, start: int, text: str) -> Clip:
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
