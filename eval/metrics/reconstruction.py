"""How well reconstructions match their videos: PSNR, SSIM, information preservation, flicker.

Videos go in as `b c t h w` in [-1, 1]; images are compared in [0, 1], in float64, after clamping
the reconstruction. Averages run over the frames of a video first and over videos after that.
"""

import math
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from common.psnr import psnr_from_mse
from eval.features.preprocess import check_range

Video = Float[Tensor, "b c t h w"]
PerFrame = Float[Tensor, "b t"]

WINDOW, SIGMA = 11, 1.5  # pixels; Wang et al. 2004
RADIUS = WINDOW // 2
GAUSSIAN = [math.exp(-0.5 * ((i - RADIUS) / SIGMA) ** 2) for i in range(WINDOW)]
KERNEL = [value / sum(GAUSSIAN) for value in GAUSSIAN]
C1, C2 = 0.01**2, 0.03**2  # of images in [0, 1]; Wang et al. 2004


def psnr(video: Video, reconstruction: Video) -> PerFrame:
    """Peak signal-to-noise ratio of each frame, dB.

    A frame is capped at 100 dB by itself, so a perfect one leaves all others as they are.

    Args:
        video: in [-1, 1].
        reconstruction: same shape; clamped to [-1, 1].

    Returns:
        float64, one value per frame, at most 100 dB.

    Raises:
        ValueError: shapes differ, a value is not finite, or the video leaves [-1, 1].
    """
    return psnr_from_mse(_frame_mse(*_unit_range(video, reconstruction)))


def ssim(video: Video, reconstruction: Video) -> PerFrame:
    """Structural similarity of each frame, averaged over channels.

    Gaussian window of 11 pixels and sigma 1.5, population covariances, and only windows that lie
    inside the frame: equal to scikit-image's `structural_similarity` with `gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, data_range=1`.

    Args:
        video: in [-1, 1], at least 11 x 11 pixels.
        reconstruction: same shape; clamped to [-1, 1].

    Returns:
        float64, one value per frame, at most 1.

    Raises:
        ValueError: as `psnr`, or frames smaller than the window.

    Source:
        Wang et al. 2004.
    """
    return _frame_ssim(*_unit_range(video, reconstruction))


def information_preservation(video: Video, reconstruction: Video) -> dict[str, float]:
    """1 - sum |x - y| / sum |x| over everything given, for pixels in `[-1,1]` and in `[0,1]`.

    The two differ, because the denominator depends on where zero lies. For a data set in batches
    use `ReconstructionMeter`: Eq. 2 is a ratio of sums, not a mean of ratios.

    Raises:
        ValueError: as `psnr`, or a video that is zero everywhere in one of the ranges.

    Source:
        Supplement of the IV-VAE paper, section 1.1, Eq. 2.
    """
    return _preservation(_absolute_sums(*_unit_range(video, reconstruction)))


class PositionScores(NamedTuple):
    """Mean score at each position of a frame group."""

    positions: list[float]
    """Value at position 1, 2, ... of a group."""
    margin: float
    """Largest minus smallest value; 0 means that all frames of a group are equally good."""


def ssim_by_position(frame_ssim: PerFrame, group: int = 4) -> PositionScores:
    """Average frame scores by position in the frame group, without the first image frame.

    Args:
        frame_ssim: what `ssim` returns (any score per frame works), of `1 + group * n` frames.
        group: frames per group: the VAE's temporal compression t_c.

    Raises:
        ValueError: the frame count is not `1 + group * n` with n at least 1.

    Source:
        Supplement of the IV-VAE paper, section 1.2 and Table 5.
    """
    check_groups(frame_ssim.shape[1], group)
    rows = frame_ssim[:, 1:].double()
    positions = reduce(rows, "b (n p) -> p", "mean", p=group).tolist()
    return PositionScores(positions, max(positions) - min(positions))


class ReconstructionMeter:
    """Accumulates all of this module's metrics over the batches of a data set, in float64.

    Memory does not grow with the number of videos. The result does not depend on how the data set
    is cut into batches, up to float64 rounding.

    Args:
        group: frames per group: the VAE's temporal compression.
    """

    def __init__(self, group: int = 4):
        self.group = group
        self._videos = 0
        self._frames = 0
        self._perfect = 0
        self._sums: dict[str, Tensor] = {}

    def update(self, video: Video, reconstruction: Video) -> dict[str, list[float]]:
        """Add a batch; all batches need the same frame count, `1 + group * n`.

        Returns:
            `psnr` (dB) and `ssim` of each video of this batch, means over its frames.

        Raises:
            ValueError: shapes, values or the frame count do not fit; nothing is added then.
        """
        count, t = video.shape[0], video.shape[2]
        check_groups(t, self.group)
        if self._frames not in (0, t):
            raise ValueError(f"a batch of {t} frames after batches of {self._frames}. Use one.")
        x, y = _unit_range(video, reconstruction)
        mse, similarity = _frame_mse(x, y), _frame_ssim(x, y)
        ratio = psnr_from_mse(mse)
        batch = {
            "psnr": ratio.mean(1).sum(),
            "ssim": similarity.mean(1).sum(),
            "mse": mse.mean(1).sum(),
            "frame_psnr": ratio.sum(0),  # t
            "frame_ssim": similarity.sum(0),  # t
            "flicker": _frame_flicker(x, y) * count,  # t - 1
            **_absolute_sums(x, y),
        }
        for name, value in batch.items():
            self._sums[name] = self._sums.get(name, 0) + value.cpu()
        self._frames = t
        self._videos += count
        self._perfect += int((mse == 0).sum())
        return {"psnr": ratio.mean(1).tolist(), "ssim": similarity.mean(1).tolist()}

    def compute(self) -> dict[str, Any]:
        """All metrics over everything added so far, ready for JSON.

        Returns:
            `psnr` (dB), `psnr_pooled` (of the squared error over all pixels, dB: at most `psnr`),
            `psnr_by_frame` (of each frame of a video, dB), `ssim`, `information_preservation` (for
            both ranges), `ssim_by_position` (`positions`, `margin`), `flicker` (see `_flicker`),
            and the counts `videos`, `frames` (per video) and `perfect_frames`.

        Raises:
            ValueError: no batch yet.
        """
        if not self._videos:
            raise ValueError("no videos were added, so there is nothing to average")
        means = {name: value / self._videos for name, value in self._sums.items()}
        by_position = ssim_by_position(means["frame_ssim"][None], self.group)
        return {
            "psnr": means["psnr"].item(),
            "psnr_pooled": psnr_from_mse(means["mse"]).item(),
            "psnr_by_frame": means["frame_psnr"].tolist(),
            "ssim": means["ssim"].item(),
            "information_preservation": _preservation(self._sums),
            "ssim_by_position": by_position._asdict(),
            "flicker": _flicker(means["flicker"], self.group),
            "videos": self._videos,
            "frames": self._frames,
            "perfect_frames": self._perfect,
        }


def check_groups(t: int, group: int) -> None:
    """Refuse (`ValueError`) a frame count other than `1 + group * n`, n at least 1."""
    if t < 1 + group or (t - 1) % group:
        raise ValueError(f"{t} frames, but frame groups need 1 + {group}n, such as {1 + 4 * group}")


def _unit_range(video: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    if video.ndim != 5 or video.shape != reconstruction.shape:
        raise ValueError(
            f"video {tuple(video.shape)} and reconstruction {tuple(reconstruction.shape)} must "
            "both be b c t h w and of one shape"
        )
    check_range(video)
    if not reconstruction.is_floating_point():
        raise ValueError(
            f"the reconstruction is {reconstruction.dtype}; floats in [-1, 1] are needed"
        )
    if not reconstruction.isfinite().all():
        raise ValueError("the reconstruction is not finite. Check the model and its precision.")
    return tuple((x.double().clamp(-1, 1) + 1) / 2 for x in (video, reconstruction))  # type: ignore[return-value]


def _frame_mse(x: Tensor, y: Tensor) -> Tensor:
    return reduce((x - y).square(), "b c t h w -> b t", "mean")


def _frame_ssim(x: Tensor, y: Tensor) -> Tensor:
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"frames of {x.shape[-2]}x{x.shape[-1]} are below SSIM's {WINDOW} pixels")
    # Frame by frame: the filtered maps then stay in the CPU's cache, and memory flat.
    frames = zip(*(rearrange(v, "b c t h w -> (b t) c h w") for v in (x, y)), strict=True)
    values = torch.stack([_ssim_of_frame(*pair) for pair in frames])
    return rearrange(values, "(b t) -> b t", b=len(x))


def _ssim_of_frame(x: Tensor, y: Tensor) -> Tensor:
    maps = torch.stack([x, y, x * x + y * y, x * y])  # 4 c h w
    mean_x, mean_y, squares, product = _blur(_blur(maps, -2), -1)
    square_means, mean_product = mean_x**2 + mean_y**2, mean_x * mean_y
    above = (2 * mean_product + C1) * (2 * (product - mean_product) + C2)
    below = (square_means + C1) * (squares - square_means + C2)  # both variances only as a sum
    return (above / below).mean()


def _blur(maps: Tensor, axis: int) -> Tensor:
    """Gaussian window along one axis, valid part: shifted sums, far faster than a convolution."""
    size = maps.shape[axis] - WINDOW + 1
    blurred = maps.narrow(axis, RADIUS, size) * KERNEL[RADIUS]
    for i in range(RADIUS):
        mirrored = maps.narrow(axis, i, size) + maps.narrow(axis, WINDOW - 1 - i, size)
        blurred.add_(mirrored, alpha=KERNEL[i])
    return blurred


def _absolute_sums(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    difference = (x - y).abs().sum()
    return {
        "error[-1,1]": 2 * difference,
        "total[-1,1]": (2 * x - 1).abs().sum(),
        "error[0,1]": difference,
        "total[0,1]": x.sum(),
    }


def _preservation(sums: dict[str, Tensor]) -> dict[str, float]:
    result = {}
    for name in ("[-1,1]", "[0,1]"):
        if not sums[f"total{name}"] > 0:
            raise ValueError(f"the videos are zero everywhere in {name}: Eq. 2 is undefined")
        result[name] = (1 - sums[f"error{name}"] / sums[f"total{name}"]).item()
    return result


def _frame_flicker(x: Tensor, y: Tensor) -> Tensor:
    """Mean |difference of successive frames' errors| of each of t - 1 steps."""
    return reduce((y - x).diff(dim=2).abs(), "b c t h w -> t", "mean")


def _flicker(steps: Tensor, group: int) -> dict[str, float]:
    """Means of `_frame_flicker` at the borders of groups and inside them.

    A constant error does not flicker. The image frame is a group of its own, so the step from frame
    0 to 1 is a border. The two are equal for errors that know nothing of groups.
    """
    border = torch.arange(len(steps), device=steps.device) % group == 0  # from frame k group on
    inside = steps[~border].mean().item() if group > 1 else 0.0
    return {"border": steps[border].mean().item(), "inside": inside}
