"""Diffusability cards side by side: a table, and curves of what has several values."""

from collections.abc import Iterable, Mapping
from typing import Any

from common.config import differences
from eval.report.items import Column, Curve, Item, Section, Table

COLUMNS = {
    "low_frequency_share": Column(name="low-frequency share", decimals=3),
    "pixel_low_frequency_share": Column(name="low-frequency share of pixels", decimals=3),
    "modes_90": Column(name="modes for 90 %", decimals=0),
    "participation_ratio": Column(name="participation ratio", decimals=2),
    "local_correlation": Column(name="local correlation", decimals=3),
    "predictability": Column(name="predictability, R²", decimals=3),
    "reconstruction_psnr": Column(name="PSNR", unit="dB", better="high", decimals=2),
    "downsampled_psnr": Column(name="PSNR, downsampled", unit="dB", better="high", decimals=2),
    "denoiser_mse": Column(name="denoiser's loss", better="low", decimals=4),
}
QUARTER, NOISE = "denoiser_mse_quarter_", "noise_psnr_"
INTRO = (
    "Low-frequency share: of the power of the 3D DCT up to a quarter of the largest radial "
    "frequency. Modes: of the covariance over channels, those that hold 90 % of the variance, and "
    "(sum l)² / sum l² of their eigenvalues l. Local correlation: over channels, of neighboring "
    "positions. Predictability: held-out R² of the next latent frame, by ridge regression from "
    "those before.",
    "PSNR: decoded latents against their clips; downsampled: decoded pooled latents against pooled "
    "clips; under noise: D(z + t / (1 - t) std e) against D(z). The denoiser is one tiny Latte for "
    "all, on one budget; its loss is the velocity's squared error, 2 for one that predicts 0.",
)


def measure_column(name: str) -> Column:
    """How a measure of the card is headed and written."""
    if name in COLUMNS:
        return COLUMNS[name]
    if name.startswith(NOISE):
        time = name.removeprefix(NOISE)
        return Column(name=f"PSNR under noise, t = {time}", unit="dB", better="high", decimals=2)
    if name.startswith(QUARTER):
        quarter = name.removeprefix(QUARTER)
        return Column(name=f"denoiser's loss, quarter {quarter}", better="low", decimals=4)
    return Column(name=name.replace("_", " "))


def in_order(names: Iterable[str]) -> list[str]:
    """Names of measures without repetition, as tables show them."""
    found = dict.fromkeys(names)
    return [*(n for n in COLUMNS if n in found), *(n for n in found if n not in COLUMNS)]


def diffusability_section(cards: Mapping[str, Mapping[str, Any]]) -> Section:
    """A table of all cards and their curves; it notes what does not compare.

    Args:
        cards: label to what `inspect_cache.py --card` wrote.
    """
    measures = {label: card["measures"] for label, card in cards.items()}
    names = [n for n in in_order(n for m in measures.values() for n in m) if n in COLUMNS]
    first = next(iter(cards.values()))["protocol"]
    notes = [
        f"{label} does not compare: {'; '.join(changes)}."
        for label, card in cards.items()
        if (changes := differences(_comparable(first), _comparable(card["protocol"])))
    ]
    items: list[Item] = [
        Table(
            title="Diffusability",
            columns=["latents", *(COLUMNS[name] for name in names)],
            rows=[[label, *(found.get(n) for n in names)] for label, found in measures.items()],
            notes=notes,
        )
    ]
    spectra = {
        label if kind == "latents" else f"{label}, pixels": (found["frequency"], found["power"])
        for label, card in cards.items()
        for kind, found in card["spectra"].items()
    }
    items.append(
        Curve(
            title="Power by radial frequency",
            x_label="radial frequency, 1 is the largest",
            y_label="mean power, white noise has 1",
            series=spectra,
            log_y=True,
        )
    )
    for title, prefix, x_label, y_label in (
        ("Decoder under noise", NOISE, "diffusion time", "PSNR, dB"),
        ("Tiny denoiser", QUARTER, "quarter of the way to noise", "squared error"),
    ):
        series = {label: _series(found, prefix) for label, found in measures.items()}
        if series := {label: points for label, points in series.items() if points[0]}:
            items.append(Curve(title=title, x_label=x_label, y_label=y_label, series=series))
    return Section(title="Diffusability", items=items, intro=INTRO)


def _series(measures: Mapping[str, float], prefix: str) -> tuple[list[float], list[float]]:
    """Values of the measures whose names begin so, over the number that follows."""
    points = {
        float(name.removeprefix(prefix)): value
        for name, value in measures.items()
        if name.startswith(prefix)
    }
    return list(points), list(points.values())


def _comparable(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What two cards must agree in; a latent may have other channels."""
    shape = protocol["latent_shape"][1:]
    kept = ("clips", "seed", "source", "denoiser")
    return {"latent positions": shape, **{name: protocol[name] for name in kept}}
