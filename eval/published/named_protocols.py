"""Protocols of published FVD scores by name: everything they fix, and what is not known of them.

To add one, add an entry to `PROTOCOLS`; its rows go into `scores.FVD`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULTS: Mapping[str, Any] = {
    "data_set": None,
    "split": "unstated",
    "frames": 16,
    "stride_real": 3,
    "stride_fake": 1,
    "start_real": "random",
    "start_fake": "first",
    "skip_fake": 0,
    "num_clips": 2048,
    "num_clips_real": "same",
    "height": None,
    "width": None,
    "preset": "i3d_tf",
}
"""Every field of eval_fvd that a protocol can fix, with its value where neither it nor a flag does:
the StyleGAN-V protocol with Latte's strides."""
DECISIVE = ("frames", "stride_real", "stride_fake", "num_clips", "height", "width", "preset")
"""Fields that move a score several times over: a published one compares only where all are known.
"""


@dataclass(frozen=True, kw_only=True)
class NamedProtocol:
    """How a published score was measured."""

    values: Mapping[str, Any]
    """Fields of `DEFAULTS` that it fixes; what is not known is left out, so that flags may add
    it."""
    source: str
    """Where this is stated or can be read off."""
    unknown: tuple[str, ...]
    """What is not known of it, or is done otherwise here."""


SEEDS = "the seeds: which videos and which starts were drawn"
JPEG = "the compression: StyleGAN-V's data sets are folders of JPEG frames"
STYLEGAN_V = {
    "frames": 16,
    "stride_real": 1,
    "stride_fake": 1,
    "start_real": "random",
    "start_fake": "first",
    "num_clips": 2048,
    "num_clips_real": "same",
    "height": 256,
    "width": 256,
    "preset": "i3d_torchscript",
}
LATTE = {**STYLEGAN_V, "stride_real": 3}
VIDEOGPT = {
    "frames": 16,
    "stride_real": 1,
    "stride_fake": 1,
    "start_real": "random",
    "num_clips": 2048,
    "height": 128,
    "width": 128,
    "split": "train",
    "preset": "i3d_videogpt",
}
LATTE_SOURCE = (
    "Ma et al. 2024 (Latte): StyleGAN-V's code; real clips at the stride of training, 3, which "
    "users found to give the published numbers"
)

PROTOCOLS: dict[str, NamedProtocol] = {
    "stylegan_v": NamedProtocol(
        values=STYLEGAN_V,
        source="Skorokhodov et al. 2022 (StyleGAN-V), fvd2048_16f of their code",
        unknown=(SEEDS, JPEG, "the crops of FaceForensics, which their scripts make"),
    ),
    "latte_ucf101": NamedProtocol(
        values={**LATTE, "data_set": "UCF-101", "split": "train+test"},
        source=LATTE_SOURCE,
        unknown=(SEEDS, JPEG, "whether all 13,320 videos are the reference"),
    ),
    "latte_sky": NamedProtocol(
        values={**LATTE, "data_set": "SkyTimelapse", "split": "train"},
        source=LATTE_SOURCE,
        unknown=(SEEDS, JPEG),
    ),
    "latte_faceforensics": NamedProtocol(
        values={**LATTE, "data_set": "FaceForensics", "split": "train"},
        source=LATTE_SOURCE,
        unknown=(SEEDS, JPEG, "the crops of the faces"),
    ),
    "ivvae_table2": NamedProtocol(
        values={"frames": 16, "height": 256, "width": 256},
        source="IV-VAE, supplement, Table 2: Latte trained with 17 frames at stride 3",
        unknown=(
            SEEDS,
            "split, number of clips, real clips' stride and the network",
            "which 16 of the 17 generated frames are taken for FVD",
        ),
    ),
    "tats": NamedProtocol(
        values={**VIDEOGPT, "data_set": "UCF-101"},
        source="Ge et al. 2022 (TATS) and their code",
        unknown=(SEEDS, "how many runs the spread is over"),
    ),
    "larp_128": NamedProtocol(
        values={
            "frames": 16,
            "stride_fake": 1,
            "num_clips": 10_000,
            "height": 128,
            "width": 128,
            "data_set": "UCF-101",
            "split": "train",
        },
        source="Wang et al. 2025 (LARP), README: 10,000 samples against ucf101_train.csv",
        unknown=(SEEDS, "number, stride and starts of the real clips", "the I3D port"),
    ),
    "cdfvd_16f_128": NamedProtocol(
        values={**VIDEOGPT, "num_clips_real": 2048},
        source="Ge et al. 2024 (content-debiased FVD): their code and its files of statistics",
        unknown=(
            SEEDS,
            "frames are resized bilinearly there and bicubically here, and truncated to 8 bits",
        ),
    ),
    "far_ucf101": NamedProtocol(
        values={
            "frames": 16,
            "stride_real": 3,
            "stride_fake": 1,
            "start_real": "first",
            "num_clips": 2048,
            "num_clips_real": "same",
            "height": 256,
            "width": 256,
            "data_set": "UCF-101",
            "split": "train+test",
            "preset": "i3d_torchscript",
        },
        source="Gu et al. 2025 (FAR): their code and its configs",
        unknown=(
            SEEDS,
            "whether the spread over four sampling seeds (0, 2, 4, 6) divides by 4 or by 3",
            "real clips are drawn equally from all classes there, short ones at stride 1, and "
            "covariances are divided by N - 1",
        ),
    ),
}
"""By the name that `--protocol` takes."""


def clips_to_generate(
    name: str | None, given: int | None, frames: int, height: int, width: int
) -> int:
    """How many clips to generate for the score of a protocol, once they are known to suit it.

    Args:
        name: of the protocol, or None.
        given: number of clips that was asked for; None takes the protocol's.
        frames, height, width: of a clip.

    Raises:
        ValueError: unknown name, no number, or clips that are too few, too short or too small.
    """
    if name is None:
        if given is None:
            raise ValueError("num_clips is required without a protocol that specifies it")
        return given
    values = resolve({}, name)
    known = PROTOCOLS[name].values
    count = given or known.get("num_clips")
    if count is None:
        raise ValueError(f"num_clips is required: protocol={name} does not specify it")
    if count < known.get("num_clips", 0):
        measured = known["num_clips"]
        raise ValueError(f"num_clips={given}, but protocol={name} measures {measured} clips")
    span = values["skip_fake"] + (values["frames"] - 1) * values["stride_fake"] + 1
    if frames < span:
        raise ValueError(f"clips of {frames} frames, but protocol={name} measures {span}")
    wanted = known.get("height", height), known.get("width", width)
    if height < wanted[0] or width < wanted[1]:
        raise ValueError(
            f"clips of {height}x{width} pixels, but protocol={name} measures "
            f"{wanted[0]}x{wanted[1]}, to which they would be enlarged"
        )
    return count


def resolve(
    given: Mapping[str, Any],
    name: str | None,
    stored: Mapping[str, Any] | None = None,
    file: str = "",
) -> dict[str, Any]:
    """Every field of `DEFAULTS`: as given, else as the protocol or the stored statistics have it,
    else the default.

    Args:
        given: by field; None for what was not given.
        name: of the protocol, or None.
        stored: fields of the real clips whose statistics are read from `file`.

    Raises:
        ValueError: unknown name, or two that contradict each other; names both.
    """
    if name is not None and name not in PROTOCOLS:
        raise ValueError(f"protocol={name}: no such protocol. Use one of {', '.join(PROTOCOLS)}.")
    fixed = PROTOCOLS[name].values if name else {}
    stored = {field: value for field, value in (stored or {}).items() if value is not None}
    for field, value in fixed.items():
        if given.get(field) not in (None, value):
            raise ValueError(
                f"{field}={given[field]} contradicts protocol={name}, which has {field}={value}. "
                "Leave out one of them."
            )
    chosen = {field: value for field, value in given.items() if value is not None}
    for field, value in stored.items():
        wanted = chosen.get(field, fixed.get(field, value))
        if wanted != value:
            who = f"protocol={name}" if field in fixed else "given"
            raise ValueError(
                f"{file}: statistics with {field}={value}, but {field}={wanted} ({who}). Leave it "
                "out, or take statistics of that protocol."
            )
    return {**DEFAULTS, **stored, **fixed, **chosen}
