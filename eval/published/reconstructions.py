"""What the IV-VAE paper and its supplement print of reconstructions, each number with its table:
never measured here. Scores of generators, theirs among them, are in `eval.published.scores`.

The paper does not say which PSNR convention it uses nor which network its LPIPS has: its LPIPS goes
into a column of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.report.items import PublishedRow


@dataclass(frozen=True)
class Published:
    """One row of a published table."""

    table: str
    """Where it stands, such as `supplement, Table 1`."""
    setting: str
    """On what it was measured."""
    method: str
    """As the table calls it."""
    values: Mapping[str, float]
    """Metric to number: `psnr` (dB), `ssim`, `lpips`, `rfvd`, `frame_1` to `frame_4` and `margin`
    (SSIM by position), `encode`, `decode`, `total` (seconds), `parameters` (millions), `macs`
    (10^12)."""


QUALITY = ("psnr", "ssim", "lpips")
POSITIONS = ("frame_1", "frame_2", "frame_3", "frame_4", "margin")
SIZES = ("parameters", "macs", *QUALITY)

TABLES: dict[tuple[str, str, Sequence[str]], dict[str, Sequence[float]]] = {
    ("paper, Table 1", "Kinetics-600", ("rfvd", *QUALITY)): {
        "IV-VAE (Z=16)": (2.97, 39.02, 0.9685, 0.02280),
    },
    ("paper, Table 1", "ActivityNet", ("rfvd", *QUALITY)): {
        "IV-VAE (Z=16)": (2.01, 42.61, 0.9722, 0.01968),
    },
    ("paper, ablation", "17x256x256, Z=8", ("psnr",)): {
        "Baseline": (31.29,),
        "Baseline + GCConv": (31.64,),
        "KTC": (31.86,),
        "KTC + GCConv": (32.12,),
        "KTC + GCConv + TMPE": (32.24,),
    },
    ("supplement, Table 1", "20K Kinetics-600 videos, 17x512x512", QUALITY): {
        "CV-VAE": (32.67, 0.9150, 0.08041),
        "OS-VAE": (34.80, 0.9289, 0.08016),
        "OD-VAE": (34.20, 0.9264, 0.05457),
        "IV-VAE (Z=4)": (34.67, 0.9314, 0.05152),
        "CogX-VAE": (38.53, 0.9682, 0.02849),
        "IV-VAE (Z=16)": (39.46, 0.9701, 0.02158),
    },
    ("supplement, Table 3", "Kinetics-600, Z=16; MACs at 17x512x512", SIZES): {
        "Baseline": (127, 30.5, 38.07, 0.9641, 0.0289),
        "IV-VAE": (108, 34.6, 39.02, 0.9685, 0.0228),
    },
    ("supplement, Table 4", "ablation, 17x256x256, Z=8", ("parameters", *QUALITY)): {
        "2D+3D": (107, 32.24, 0.9158, 0.04725),
        "3D+3D": (132, 32.31, 0.9163, 0.04704),
    },
    ("supplement, Table 5", "17x256x256, Z=8", POSITIONS): {
        "Baseline": (0.8923, 0.8986, 0.9191, 0.9056, 0.0268),
        "Baseline + GCConv": (0.9012, 0.9049, 0.9205, 0.9063, 0.0193),
        "KTC": (0.9027, 0.9103, 0.9203, 0.9111, 0.0176),
        "KTC + GCConv": (0.9093, 0.9167, 0.9191, 0.9119, 0.0098),
    },
    ("supplement, Table 6", "17x720x1280, one A800", ("encode", "decode", "total")): {
        "CV-VAE": (1.9, 3.5, 5.4),
        "OS-VAE": (1.2, 2.6, 3.8),
        "OD-VAE": (0.9, 2.9, 3.8),
        "CogX-VAE": (2.1, 4.2, 6.3),
        "IV-VAE (Cache)": (1.3, 2.0, 3.3),
    },
}
"""Table, setting and metrics to method to values."""

PUBLISHED = [
    Published(table, setting, method, dict(zip(metrics, values, strict=True)))
    for (table, setting, metrics), rows in TABLES.items()
    for method, values in rows.items()
]


def published_rows(metrics: Sequence[str]) -> list[PublishedRow]:
    """Rows of the published tables that have any of these metrics.

    Args:
        metrics: of the columns after the first; others give empty cells.
    """
    return [
        PublishedRow(
            cells=[row.method, *(row.values.get(name) for name in metrics)],
            source=row.table,
            setting=row.setting,
        )
        for row in PUBLISHED
        if any(name in row.values for name in metrics)
    ]
