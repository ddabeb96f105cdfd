"""Published scores of generators, and which of them may stand beside a score of ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eval.published.named_protocols import DECISIVE, PROTOCOLS
from eval.report.items import PublishedRow


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """One published number."""

    method: str
    data_set: str
    value: float
    std: float | None
    """Over the authors' own runs."""
    metric: Literal["fvd", "is"]
    protocol: str | None
    """A name of `PROTOCOLS`; None where too little is stated to measure in the same way."""
    setting: str
    """Such as `class-conditional, 256x256`."""
    source: str


UCF, SKY, FACES = "UCF-101", "SkyTimelapse", "FaceForensics"
LATTE = "Ma et al. 2024 (Latte)"
LEAN = "Cheng and Yuan 2025 (LeanVAE), README"
AR_DIFFUSION = "Table 1 of Sun et al. 2025 (AR-Diffusion)"
STYLEGAN_V = f"Skorokhodov et al. 2022 (StyleGAN-V), as {AR_DIFFUSION} has them"
IVVAE = "IV-VAE, supplement, Table 2"
FAR = "Gu et al. 2025 (FAR), README"
LARP = "Wang et al. 2025 (LARP), README"
TATS = "Ge et al. 2022 (TATS), as Yu et al. 2023 (MAGVIT) have it"

Tables = Mapping[tuple[str, str | None, str], Mapping[str, Mapping[str, Any]]]
"""Source, protocol and setting to data set to method to value, or to value and spread."""

FVD: Tables = {
    (STYLEGAN_V, "stylegan_v", "256x256"): {
        FACES: {"StyleGAN-V": 47.4},
        SKY: {"StyleGAN-V": 79.5},
        UCF: {"StyleGAN-V": 1431.0},
    },
    (LATTE, "latte_ucf101", "class-conditional, 256x256"): {UCF: {"Latte": 478.0}},
    (LATTE, "latte_sky", "256x256"): {SKY: {"Latte": 59.8}},
    (LATTE, "latte_faceforensics", "256x256"): {FACES: {"Latte": 34.0}},
    (LEAN, None, "256x256"): {
        SKY: {"Latte + LeanVAE (z 4)": 49.59, "Latte + LeanVAE (z 16)": 95.15},
        UCF: {"Latte + LeanVAE (z 4)": 164.45, "Latte + LeanVAE (z 16)": 175.33},
    },
    (IVVAE, "ivvae_table2", "Latte, 256x256"): {
        UCF: {"CV-VAE": 587.9, "OS-VAE": 674.1, "OD-VAE": 565.2, "IV-VAE": 557.5},
        FACES: {"CV-VAE": 328.2, "OS-VAE": 316.3, "OD-VAE": 285.5, "IV-VAE": 259.8},
    },
    (AR_DIFFUSION, None, "256x256"): {
        UCF: {"AR-Diffusion": 186.6},
        SKY: {"AR-Diffusion": 40.8},
        FACES: {"AR-Diffusion": 71.9},
    },
    (FAR, "far_ucf101", "class-conditional, 256x256"): {
        UCF: {"FAR-L": (113, 3.6), "FAR-XL": (108, 4.2)},
    },
    (FAR, "far_ucf101", "unconditional, 256x256"): {
        UCF: {"FAR-L, unconditional": (303, 13.5), "FAR-XL, unconditional": (279, 9.2)},
    },
    (LARP, "larp_128", "class-conditional, 128x128"): {UCF: {"LARP-L-Long": 57}},
    (TATS, "tats", "class-conditional, 128x128"): {UCF: {"TATS-base": (332, 18)}},
}
IS: Tables = {
    (IVVAE, None, "Latte, 256x256"): {
        UCF: {"CV-VAE": 84.7, "OS-VAE": 85.2, "OD-VAE": 82.5, "IV-VAE": 85.7},
    },
}


def _scores(metric: Literal["fvd", "is"], tables: Tables) -> list[PublishedScore]:
    return [
        PublishedScore(
            method=method,
            data_set=data_set,
            value=value,
            std=std,
            metric=metric,
            protocol=protocol,
            setting=setting,
            source=source,
        )
        for (source, protocol, setting), data_sets in tables.items()
        for data_set, methods in data_sets.items()
        for method, given in methods.items()
        for value, std in [given if isinstance(given, tuple) else (given, None)]
    ]


SCORES = [*_scores("fvd", FVD), *_scores("is", IS)]


def compare(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every published score of the same kind and data set, and whether ours compares with it.

    Args:
        result: of `evaluate_fvd` or `evaluate_is`; nothing compares where its `protocol` names no
            `data_set`.

    Returns: for JSON, of each its `method`, `value`, `std`, `protocol`, `setting` and `source`,
        whether it `compares`, else `why_not`, and what is `unknown` of its protocol.
    """
    wanted = (result["kind"], result["protocol"].get("data_set"))
    records = []
    for score in SCORES:
        if (score.metric, score.data_set) == wanted:
            why_not = _differences(result, score)
            records.append(
                {
                    "method": score.method,
                    "value": score.value,
                    "std": score.std,
                    "protocol": score.protocol,
                    "setting": score.setting,
                    "source": score.source,
                    "compares": not why_not,
                    "why_not": why_not,
                    "unknown": list(PROTOCOLS[score.protocol].unknown) if score.protocol else [],
                }
            )
    return records


def comparison_lines(result: Mapping[str, Any]) -> list[str]:
    """A line for each published score of the same data set: what is not known of one that compares,
    and why another does not."""
    lines = []
    for record in result["published"]:
        spread = "" if record["std"] is None else f" ± {record['std']:g}"
        name = f"{record['method']} {record['value']:g}{spread} ({record['source']})"
        if record["compares"]:
            unknown = f"; not known: {'; '.join(record['unknown'])}" if record["unknown"] else ""
            lines.append(f"compares with {name}{unknown}")
        else:
            lines.append(f"does not compare with {name}: {'; '.join(record['why_not'])}")
    return sorted(lines)


def published_beside(result: Mapping[str, Any], columns: int) -> list[PublishedRow]:
    """Rows for a table whose second and third column are the score and its spread: those that
    compare, and no others."""
    return [
        PublishedRow(
            cells=[row["method"], row["value"], row["std"], *(None for _ in range(columns - 3))],
            source=row["source"],
            setting=row["setting"],
        )
        for row in compare(result)
        if row["compares"]
    ]


def _differences(result: Mapping[str, Any], score: PublishedScore) -> list[str]:
    measured, real = result["protocol"], result["real"]
    if score.protocol is None:
        lacks = {"fvd": "its protocol is not stated", "is": "its clips and splits are not stated"}
        return [lacks[score.metric]]
    reasons = []
    if not measured["network"]["published_weights"]:
        reasons.append("ours was not measured with the published weights")
    stated = PROTOCOLS[score.protocol].values
    if missing := [field for field in DECISIVE if field not in stated]:
        reasons.append(f"not known there: {', '.join(missing)}")
    for field, theirs in stated.items():
        match field:
            case "num_clips":
                ours = measured["clips_fake"]
            case "num_clips_real":
                ours = measured["clips_real"]
                if theirs == "same":
                    theirs = measured["clips_fake"]
                if theirs == "all":
                    theirs = real["videos"] - real["too_short"] - len(real["unreadable"])
            case "preset":
                ours = measured["network"]["name"]
            case _:
                ours = measured[field]
        if ours != theirs:
            reasons.append(f"{field} {theirs} there, {ours} here")
    return reasons
