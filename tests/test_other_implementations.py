"""Distances are those of pytorch-fid and torch-fidelity on the same features.

PSNR and SSIM against scikit-image: `test_reconstruction_metrics.py`.
"""

import numpy as np
import pytest

from eval.metrics.frechet import frechet_distance, frechet_from_features, moments
from eval.metrics.kvd import jedi_distance, kernel_distance

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def features():
    """Two sets of correlated features, float32 as networks give them."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(24, 24)) / 5
    real, fake = rng.normal(size=(2, 300, 24)) @ mix + 0.5
    return real.astype(np.float32), (1.2 * fake + 0.3).astype(np.float32)


def test_frechet_distance_is_pytorch_fids(features):
    fid = pytest.importorskip("pytorch_fid.fid_score")
    real, fake = map(moments, features)
    theirs = fid.calculate_frechet_distance(*real, *fake)
    assert frechet_distance(*real, *fake) == pytest.approx(theirs, rel=1e-9)
    assert frechet_from_features(*features) == pytest.approx(theirs, rel=1e-9)


def test_kernel_distances_are_torch_fidelitys(features):
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    real, fake = (each.astype(np.float64) for each in features)

    def mmd(estimate: str, degree: int, offset: float) -> float:
        kernel = {"kid_kernel_poly_degree": degree, "kid_kernel_poly_coef0": offset}
        kernel["kid_kernel_poly_gamma"] = None
        pairs = ((real, real), (real, fake), (fake, fake))
        return kid.mmd2(*(kid.kernel_poly(*pair, **kernel) for pair in pairs), mmd_est=estimate)

    cubic = mmd("unbiased", 3, 1.0)
    assert kernel_distance(*features) == pytest.approx(cubic, rel=1e-9)
    square = mmd("biased", 2, 0.0)
    assert jedi_distance(*features) == pytest.approx(100 * square, rel=1e-9)
