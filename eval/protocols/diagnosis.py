"""How far a score moves with the slips that public scripts and papers differ by."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn

from common.pixels import to_float
from common.seeding import generator
from data.video.decode import read_frames
from data.video.encode import encode_video, from_uint8, to_uint8
from eval.clips.source import ClipSource
from eval.features.extractors import PORTS, Extractor
from eval.features.feature_cache import Extraction, FeatureSet, extract_features
from eval.features.statistics import Statistics
from eval.protocols.fvd import DISTANCES

QUALITY = 23  # x264's own default
LATTES_STRIDE = 3


class Impossible(ValueError):
    """A slip that these clips or this network do not allow."""


class AlteredClips(ClipSource):
    """The clips of a source, read with a slip.

    Args:
        source: the clips.
        name: of the slip; features are kept under it.
        change: of a clip, float32 in [-1, 1], by its id.
        stretch: bring frames to the protocol's size without cropping.
    """

    def __init__(
        self,
        source: ClipSource,
        name: str,
        *,
        change: Callable[[str, Tensor], Tensor] | None = None,
        stretch: bool = False,
    ):
        self.__dict__.update(source.__dict__)
        self._name, self._change, self._stretch = name, change, stretch

    def __getitem__(self, index: int) -> tuple[str, Float[Tensor, "c t h w"]]:
        id, clip = super().__getitem__(index)
        return id, clip if self._change is None else self._change(id, clip)

    def sized(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float[Tensor, "c t h w"]:
        """Frames at the protocol's size, float32 in [-1, 1]."""
        if not self._stretch:
            return super().sized(frames)
        video = rearrange(torch.from_numpy(frames), "t h w c -> t c h w")
        video = F.interpolate(video, list(self.size), mode="bicubic", antialias=True)
        return to_float(rearrange(video, "t c h w -> c t h w"))

    def content(self) -> str:
        """Hash of the clips and of the slip."""
        return hashlib.sha256(f"{super().content()} {self._name}".encode()).hexdigest()


def diagnose(
    real: ClipSource | Statistics,
    features: FeatureSet | None,
    fake: ClipSource,
    extractor: Extractor,
    extraction: Extraction,
) -> list[dict[str, Any]]:
    """The score as it is and with each of the slips, one at a time.

    Args:
        real: the real clips, or statistics of them, which allow slips of the generated clips only.
        features: of the real clips; None of statistics without features.
        fake: generated clips.
        extractor: gives the features; those of the changed clips are computed anew.
        extraction: how.

    Returns:
        One record per row: `slip`, `value`, `ratio` to the first row's, which has no slip, and
        `why_not` where there is no value. Ready for JSON.

    Raises:
        ValueError: statistics of the real clips without features.
    """
    if features is None:
        raise ValueError(f"{real.folder}: only mean and covariance, but diagnose needs features")
    trues = features.values
    fakes = extract_features(fake, extractor, extraction).values
    distance = DISTANCES[extractor.distance]

    correct = distance(trues, fakes)
    stride = LATTES_STRIDE if real.protocol.stride == 1 else 1

    def again(source: ClipSource, network: Extractor = extractor) -> ndarray:
        return extract_features(source, network, extraction).values

    def videos() -> ClipSource:
        if isinstance(real, Statistics):
            raise Impossible(f"{real.folder.name} holds no videos")
        return real

    def changed(name: str, change: Callable[[str, Tensor], Tensor]) -> float:
        return distance(trues, again(AlteredClips(fake, name, change=change)))

    def other_stride() -> float:
        protocol = replace(videos().protocol, stride=stride)
        try:
            other = ClipSource(real.folder, protocol, on_error=videos().on_error, progress=False)
        except ValueError as error:
            raise Impossible(str(error)) from None
        return distance(again(other), fakes)

    def stretched() -> float:
        if not videos().is_cropped:
            raise Impossible("the real videos have the shape of the clips")
        return distance(again(AlteredClips(videos(), "stretched", stretch=True)), fakes)

    def by(other: Extractor) -> float:
        return distance(again(videos(), other), again(fake, other))

    half_trues, half_fakes = len(trues) // 2, len(fakes) // 2
    rows: Mapping[str, Callable[[], float]] = {
        f"none ({fake.folder.name})": lambda: correct,
        f"real clips at stride {stride} instead of {real.protocol.stride}": other_stride,
        f"generated clips through H.264 (crf {QUALITY})": lambda: changed("h264", through_h264),
        "generated pixels cut down to 8 bits instead of rounded": lambda: changed(
            "truncated", truncated
        ),
        "real frames stretched instead of cropped": stretched,
        "frames cropped for the network instead of stretched, or the reverse": lambda: by(
            with_other_resize(extractor, fake)
        ),
        "the other port of I3D (eps of its batch norms)": lambda: by(with_other_eps(extractor)),
        "half of the clips": lambda: distance(
            trues[: max(2, half_trues)], fakes[: max(2, half_fakes)]
        ),
        "half of the generated clips twice": lambda: distance(
            trues, np.concatenate([fakes[:half_fakes]] * 2)
        ),
        "mean over batches of two clips": lambda: batch_mean(trues, fakes, distance),
    }
    found = []
    for slip, work in rows.items():
        value = why_not = None
        try:
            value = work()
        except Impossible as error:
            why_not = str(error)
        ratio = value / correct if value is not None and correct else None
        found.append({"slip": slip, "value": value, "ratio": ratio, "why_not": why_not})
    return found


def diagnosis_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table, one line per row; none of no rows."""
    if not rows:
        return []
    width = max(len(row["slip"]) for row in rows)
    lines = [f"{'slip'.ljust(width)}  {'score':>12}  {'ratio':>7}"]
    for row in rows:
        if row["value"] is None:
            lines.append(f"{row['slip'].ljust(width)}  {'-':>12}  {'':7}  {row['why_not']}")
        else:
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
            lines.append(f"{row['slip'].ljust(width)}  {row['value']:12.6g}  {ratio:>7}")
    return lines


def batch_mean(
    a: Float[ndarray, "n d"],
    b: Float[ndarray, "m d"],
    distance: Callable[[ndarray, ndarray], float],
) -> float:
    """The mean distance of batches of two: the slip of scripts that average over a data loader.

    Of two clips the covariance has rank 1, so most of both spreads counts as distance. For features
    of two isotropic Gaussians of d dimensions, standard deviation s and means m apart, with
    covariances divided by N, the Fréchet distance of batches of two is on average

        m^2 + 2 d s^2 - 2 s^2 G((d + 1) / 2) / (sqrt(pi) G(d / 2)),    G the gamma function,

    where the true distance is m^2: with u, v half the difference of either batch's clips, which are
    N(0, s^2 / 2), means add m^2 + d s^2, traces d s^2 / 2 each, and the root takes 2 E|u . v|.
    """
    batches = (slice(2 * i, 2 * i + 2) for i in range(min(len(a), len(b)) // 2))
    return float(np.mean([distance(a[batch], b[batch]) for batch in batches]))


def through_h264(id: str, clip: Float[Tensor, "c t h w"]) -> Float[Tensor, "c t h w"]:
    """A clip as it would be read from a lossy file."""
    frames = to_uint8(clip)
    stored = encode_video(frames, 25, quality=QUALITY)
    back = read_frames(stored, range(len(frames)))
    return from_uint8(back[:, : frames.shape[1], : frames.shape[2]])


def truncated(id: str, clip: Float[Tensor, "c t h w"]) -> Float[Tensor, "c t h w"]:
    """A clip as if its pixels had been cut down to 8 bits, not rounded.

    The file has rounded values only, so each is first spread evenly over the range that is
    rounded to it: half of the pixels become one level darker.
    """
    draws = torch.rand(clip.shape, generator=generator(0, "truncated", id))
    levels = ((clip + 1) * 127.5).round() + draws - 0.5
    return levels.floor().clamp(0, 255) / 127.5 - 1


def with_other_resize(extractor: Extractor, clips: ClipSource) -> Extractor:
    """The network with cropped frames instead of stretched ones, or the reverse."""
    if extractor.resize is None:
        raise Impossible(f"{extractor.name} resizes by itself")
    if clips.size[0] == clips.size[1]:
        raise Impossible("the clips are square")
    return replace(extractor, resize="crop" if extractor.resize == "stretch" else "stretch")


def with_other_eps(extractor: Extractor) -> Extractor:
    """The network of `i3d_tf` with the eps of `i3d_videogpt`, or the reverse; the resize stays."""
    if extractor.name not in PORTS:
        raise Impossible(f"{extractor.name} has no other port")
    (eps,) = (eps for name, (eps, _) in PORTS.items() if name != extractor.name)
    network = copy.deepcopy(extractor.network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = eps
    name = f"{extractor.name}, eps {eps:g}"
    return replace(extractor, network=network, run=network, name=name)
