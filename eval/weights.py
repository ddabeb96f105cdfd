"""Where the weights of the published metrics are, and whether they are the published ones."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.files import sha256_file

BLOCK = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A file that users have to fetch themselves."""

    name: str
    """What it is, in words."""
    file: str
    """File name it is looked for under."""
    variable: str
    """Environment variable that may hold its path."""
    source: str
    """Where it is published, in words."""
    without: str
    """What can be done without it."""
    blob: str | None = None
    """git's SHA-1 of the published file; None where it is not known."""


@dataclass(frozen=True)
class WeightsFile:
    """A file that was found."""

    path: Path
    sha256: str
    verified: bool | None = field(default=None)
    """Whether it is the published file; None where that cannot be told."""


I3D_WITHOUT = (
    "Without it, train a classifier on your own clips (scripts/train_classifier.py) and pass "
    "--classifier: its score is not FVD, but compares your own runs"
)
I3D = PublishedWeights(
    name="I3D weights, Kinetics-400",
    file="i3d_pretrained_400.pt",
    variable="IVVAE_I3D",
    source="the TATS repository on GitHub (songweige/TATS, folder tats/fvd, 51 MB)",
    without=I3D_WITHOUT,
    blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
)
I3D_TORCHSCRIPT = PublishedWeights(
    name="I3D as a TorchScript program",
    file="i3d_torchscript.pt",
    variable="IVVAE_I3D_TORCHSCRIPT",
    source="the Dropbox link in StyleGAN-V's src/metrics/frechet_video_distance.py on GitHub",
    without=I3D_WITHOUT,
    blob="93daef59c7ae0e9e8f76225521407e60cbafa6aa",
)
C3D_WITHOUT = "Without it, FVD and the reconstruction metrics still work"
C3D_TORCHSCRIPT = PublishedWeights(
    name="C3D for UCF-101 as a TorchScript program",
    file="c3d_ucf101.pt",
    variable="IVVAE_C3D",
    source="the Dropbox link in StyleGAN-V's src/metrics/inception_score.py on GitHub",
    without=C3D_WITHOUT,
)
C3D = PublishedWeights(
    name="C3D weights for UCF-101 (chainer)",
    file="conv3d_deepnetA_ucf.npz",
    variable="IVVAE_C3D",
    source="release v1.0 of the TGANv2 repository on GitHub (rezoo/tgan2)",
    without=C3D_WITHOUT,
)
C3D_MEAN = PublishedWeights(
    name="mean video of C3D",
    file="mean2.npz",
    variable="IVVAE_C3D_MEAN",
    source="release v1.0 of the TGANv2 repository on GitHub (rezoo/tgan2)",
    without=C3D_WITHOUT,
)


def cache_folders() -> list[Path]:
    """Folders that are searched, in this order: `weights` here, then `~/.cache/ivvae`."""
    return [Path("weights"), Path.home() / ".cache" / "ivvae"]


def find_weights(
    weights: PublishedWeights,
    path: str | Path | None = None,
    *,
    allow_unknown: bool = False,
    environment: Mapping[str, str] | None = None,
) -> WeightsFile:
    """Find a weights file: at `path`, else where its environment variable says, else in a cache.

    Nothing is downloaded.

    Args:
        weights: what is looked for.
        path: the file; must exist if given.
        allow_unknown: take a file whose hash is not the published one; `verified` is then False and
            scores made with it must not carry the metric's published name.
        environment: instead of the process's own.

    Raises:
        ValueError: not found (the message says where to get it and where to put it), or not the
            published file.
    """
    environment = os.environ if environment is None else environment
    given = path or environment.get(weights.variable)
    folders = cache_folders()
    candidates = [Path(given)] if given else [folder / weights.file for folder in folders]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        missing = f"{given}: no such file" if given else f"no {weights.file} found"
        raise ValueError(
            f"{weights.name}: {missing}. Get {weights.file} from {weights.source}, then put it "
            f"into {folders[0]}/ or {folders[1]}/, or set {weights.variable} to its path. "
            f"{weights.without}."
        )
    verified = None if weights.blob is None else git_blob_hash(found) == weights.blob
    if verified is False and not allow_unknown:
        raise ValueError(
            f"{found}: not the published {weights.file} (git blob {git_blob_hash(found)}, "
            f"published {weights.blob}). Fetch it again from {weights.source}, or allow unknown "
            "weights: the score then gets another name."
        )
    return WeightsFile(found, sha256_file(found), verified)


def git_blob_hash(path: str | Path) -> str:
    """The name git gives a file's content: SHA-1 of `blob <size>`, a zero byte and the bytes."""
    path = Path(path)
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
