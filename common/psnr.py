"""Peak signal-to-noise ratio: one definition for training, packing, evaluation and pages."""

from jaxtyping import Float
from torch import Tensor

PSNR_CAP = 100.0  # dB: what an exact frame counts, instead of infinity


def psnr_from_mse(
    mse: Float[Tensor, "..."], *, peak: float = 1.0, cap: float = PSNR_CAP
) -> Float[Tensor, "..."]:
    """`10 log10(peak^2 / mse)`, dB, element by element.

    Args:
        mse: mean squared errors; 0 gives `cap`.
        peak: largest difference of two pixels: 1 in [0, 1], 2 in [-1, 1], 255 in 8 bits.
        cap: largest value; infinity leaves exact frames infinite.
    """
    return (-10 * (mse / peak**2).log10()).clamp(max=cap)
