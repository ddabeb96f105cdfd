"""Published scores of generators, and which of them may stand beside a score of ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eval.published.named_protocols import PROTOCOLS
from eval.report.items import PublishedRow


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """One published number."""

    method: str
    data_set: str
    value: float
    std: float | None = None
    """Over the authors' own runs."""
    metric: Literal["fvd", "is"] = "fvd"
    protocol: str | None = None
    """A name of `PROTOCOLS`; None where too little is stated to measure in the same way."""
    setting: str = ""
    """Such as `class-conditional, 256x256`."""
    source: str


def _scores(
    source: str,
    protocol: str | None,
    setting: str,
    rows: Mapping[tuple[str, str], Any],
    metric: Literal["fvd", "is"] = "fvd",
) -> list[PublishedScore]:
    """Rows of one table: (method, data set) to value, or to value and spread."""
    found = []
    for (method, data_set), given in rows.items():
        value, std = given if isinstance(given, tuple) else (given, None)
        row = {"method": method, "data_set": data_set, "value": value, "std": std}
        more = {"protocol": protocol, "setting": setting, "source": source, "metric": metric}
        found.append(PublishedScore(**row, **more))
    return found


UCF, SKY, FACES = "UCF-101", "SkyTimelapse", "FaceForensics"
LATTE = "Ma et al. 2024 (Latte)"
LEAN = "Cheng and Yuan 2025 (LeanVAE), README"
AR_DIFFUSION = "Table 1 of Sun et al. 2025 (AR-Diffusion)"
IVVAE = "IV-VAE, supplement, Table 2"

SCORES: list[PublishedScore] = [
    *_scores(
        *(f"Skorokhodov et al. 2022 (StyleGAN-V), as {AR_DIFFUSION} has them", "stylegan_v"),
        "256x256",
        {
            ("StyleGAN-V", FACES): 47.4,
            ("StyleGAN-V", SKY): 79.5,
            ("StyleGAN-V", UCF): 1431.0,
        },
    ),
    *_scores(LATTE, "latte_ucf101", "class-conditional, 256x256", {("Latte", UCF): 478.0}),
    *_scores(LATTE, "latte_sky", "256x256", {("Latte", SKY): 59.8}),
    *_scores(LATTE, "latte_faceforensics", "256x256", {("Latte", FACES): 34.0}),
    *_scores(
        *(LEAN, None, "256x256"),
        {
            ("Latte + LeanVAE (z 4)", SKY): 49.59,
            ("Latte + LeanVAE (z 16)", SKY): 95.15,
            ("Latte + LeanVAE (z 4)", UCF): 164.45,
            ("Latte + LeanVAE (z 16)", UCF): 175.33,
        },
    ),
    *_scores(
        *(IVVAE, "ivvae_table2", "Latte, 256x256"),
        {
            ("CV-VAE", UCF): 587.9,
            ("OS-VAE", UCF): 674.1,
            ("OD-VAE", UCF): 565.2,
            ("IV-VAE", UCF): 557.5,
            ("CV-VAE", FACES): 328.2,
            ("OS-VAE", FACES): 316.3,
            ("OD-VAE", FACES): 285.5,
            ("IV-VAE", FACES): 259.8,
        },
    ),
    *_scores(
        *(IVVAE, None, "Latte, 256x256"),
        {
            ("CV-VAE", UCF): 84.7,
            ("OS-VAE", UCF): 85.2,
            ("OD-VAE", UCF): 82.5,
            ("IV-VAE", UCF): 85.7,
        },
        metric="is",
    ),
    *_scores(
        *(AR_DIFFUSION, None, "256x256"),
        {
            ("AR-Diffusion", UCF): 186.6,
            ("AR-Diffusion", SKY): 40.8,
            ("AR-Diffusion", FACES): 71.9,
        },
    ),
    *_scores(
        *("Gu et al. 2025 (FAR), README", "far_ucf101", "class-conditional, 256x256"),
        {("FAR-L", UCF): (113, 3.6), ("FAR-XL", UCF): (108, 4.2)},
    ),
    *_scores(
        *("Gu et al. 2025 (FAR), README", "far_ucf101", "unconditional, 256x256"),
        {("FAR-L, unconditional", UCF): (303, 13.5), ("FAR-XL, unconditional", UCF): (279, 9.2)},
    ),
    *_scores(
        *("Wang et al. 2025 (LARP), README", "larp_128", "class-conditional, 128x128"),
        {("LARP-L-Long", UCF): 57},
    ),
    *_scores(
        *("Ge et al. 2022 (TATS), as Yu et al. 2023 (MAGVIT) have it", "tats"),
        "class-conditional, 128x128",
        {("TATS-base", UCF): (332, 18)},
    ),
]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Whether a score of ours may stand beside a published one."""

    score: PublishedScore
    why_not: tuple[str, ...]
    """What differs; empty where they compare."""
    caveats: tuple[str, ...] = ()
    """What is not known of the published one's protocol."""


def compare(result: Mapping[str, Any]) -> list[Comparison]:
    """Every published score of the same kind and data set, with what keeps ours from standing
    beside it.

    Args:
        result: of `evaluate_fvd` or `evaluate_is`; nothing compares where its `protocol` names no
            `data_set`.
    """
    wanted = (result["kind"], result["protocol"].get("data_set"))
    scores = [score for score in SCORES if (score.metric, score.data_set) == wanted]
    return [
        Comparison(
            score=score,
            why_not=tuple(_differences(result, score)),
            caveats=PROTOCOLS[score.protocol].unknown if score.protocol else (),
        )
        for score in scores
    ]


def comparison_records(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `compare` finds, for the result's JSON."""
    return [
        {
            "method": found.score.method,
            "value": found.score.value,
            "std": found.score.std,
            "protocol": found.score.protocol,
            "setting": found.score.setting,
            "source": found.score.source,
            "compares": not found.why_not,
            "why_not": list(found.why_not),
            "unknown": list(found.caveats),
        }
        for found in compare(result)
    ]


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
            cells=[
                found.score.method,
                *(found.score.value, found.score.std),
                *(None for _ in range(columns - 3)),
            ],
            source=found.score.source,
            setting=found.score.setting,
        )
        for found in compare(result)
        if not found.why_not
    ]


def _differences(result: Mapping[str, Any], score: PublishedScore) -> list[str]:
    measured, real = result["protocol"], result["real"]
    if score.protocol is None:
        lacks = {"fvd": "its protocol is not stated", "is": "its clips and splits are not stated"}
        return [lacks[score.metric]]
    reasons = []
    if not measured["network"]["published_weights"]:
        reasons.append("ours was not measured with the published weights")
    for field, theirs in PROTOCOLS[score.protocol].values.items():
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
