"""Where the weights of the published metrics are, and whether they are the published ones."""

import hashlib
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from tqdm import tqdm

from common.files import atomic_path, sha256_file

BLOCK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte


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
    url: str | None = None
    """Where `download` fetches it; None where users have to agree to a license first."""
    without: str
    """What can be done without it."""
    blob: str | None = None
    """git's SHA-1 of the published file; None where it is not known."""
    sha256: str | None = None
    """First digits of the published file's SHA-256; None where they are not known."""

    def verify(self, path: Path) -> bool | None:
        """Whether a file is the published one; None where that cannot be told."""
        if self.blob is not None:
            return git_blob_hash(path) == self.blob
        return None if self.sha256 is None else sha256_file(path).startswith(self.sha256)


@dataclass(frozen=True)
class WeightsFile:
    """A file that was found."""

    path: Path
    sha256: str
    verified: bool | None = field(default=None)
    """Whether it is the published file; None where that cannot be told."""


METRICS = "the repository JunyaoHu/common_metrics_on_video_quality on GitHub"
METRICS_URL = "https://github.com/JunyaoHu/common_metrics_on_video_quality/raw/main/fvd"
TGAN2 = "release v1.0 of the TGANv2 repository on GitHub (rezoo/tgan2)"
TGAN2_URL = "https://github.com/rezoo/tgan2/releases/download/v1.0"
I3D_WITHOUT = (
    "Without it, train a classifier on your own clips (scripts/train_classifier.py) and pass "
    "--classifier: its score is not FVD, but compares your own runs"
)
I3D = PublishedWeights(
    name="I3D weights, Kinetics-400",
    file="i3d_pretrained_400.pt",
    variable="IVVAE_I3D",
    source=f"{METRICS} (folder fvd/videogpt, 51 MB)",
    url=f"{METRICS_URL}/videogpt/i3d_pretrained_400.pt",
    without=I3D_WITHOUT,
    blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
)
I3D_TORCHSCRIPT = PublishedWeights(
    name="I3D as a TorchScript program",
    file="i3d_torchscript.pt",
    variable="IVVAE_I3D_TORCHSCRIPT",
    source=f"{METRICS} (folder fvd/styleganv), which has it from StyleGAN-V",
    url=f"{METRICS_URL}/styleganv/i3d_torchscript.pt",
    without=I3D_WITHOUT,
    blob="93daef59c7ae0e9e8f76225521407e60cbafa6aa",
)
C3D_WITHOUT = (
    "Without it, FVD and the reconstruction metrics still work, and --classifier takes a network "
    "trained by scripts/train_classifier.py"
)
C3D_TORCHSCRIPT = PublishedWeights(
    name="C3D for UCF-101 as a TorchScript program",
    file="c3d_ucf101.pt",
    variable="IVVAE_C3D",
    source="the Dropbox link in StyleGAN-V's src/metrics/inception_score.py on GitHub",
    url="https://www.dropbox.com/s/jxpu7avzdc9n97q/c3d_ucf101.pt?dl=1",
    without=C3D_WITHOUT,
)
C3D = PublishedWeights(
    name="C3D weights for UCF-101 (chainer)",
    file="conv3d_deepnetA_ucf.npz",
    variable="IVVAE_C3D",
    source=TGAN2,
    url=f"{TGAN2_URL}/conv3d_deepnetA_ucf.npz",
    without=C3D_WITHOUT,
)
C3D_MEAN = PublishedWeights(
    name="mean video of C3D",
    file="mean2.npz",
    variable="IVVAE_C3D_MEAN",
    source=TGAN2,
    url=f"{TGAN2_URL}/mean2.npz",
    without=C3D_WITHOUT,
)
LPIPS_WITHOUT = (
    "Without it, evaluation with --lpips none measures everything else. In training, name the file "
    "in loss.perceptual_weights, or set loss.perceptual to none"
)
LPIPS_ALEX = PublishedWeights(
    name="AlexNet for LPIPS",
    file="alexnet-owt-7be5be79.pth",
    variable="IVVAE_ALEXNET",
    source="torchvision (AlexNet_Weights.IMAGENET1K_V1, 244 MB)",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    without=LPIPS_WITHOUT,
    sha256="7be5be79",
)
LPIPS_VGG = PublishedWeights(
    name="VGG-16 for LPIPS",
    file="vgg16-397923af.pth",
    variable="IVVAE_VGG16",
    source="torchvision (VGG16_Weights.IMAGENET1K_V1, 553 MB)",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    without=LPIPS_WITHOUT,
    sha256="397923af",
)

VIDEOMAE = PublishedWeights(
    name="VideoMAE v2 for content-debiased FVD",
    file="vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    variable="IVVAE_VIDEOMAE",
    source="VideoMAE v2's model zoo on GitHub (OpenGVLab/VideoMAEv2), after its form",
    without="The i3d presets work without it",
)


def cache_folders() -> list[Path]:
    """Folders that are searched, in this order: `weights` here, `~/.cache/ivvae`, torch hub's."""
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    return [Path("weights"), Path.home() / ".cache" / "ivvae", hub]


def find_weights(
    weights: PublishedWeights,
    path: str | Path | None = None,
    *,
    allow_unknown: bool = False,
    download: bool = False,
    environment: Mapping[str, str] | None = None,
) -> WeightsFile:
    """Find a weights file: at `path`, else where its environment variable says, else in a cache.

    Args:
        weights: what is looked for.
        path: the file; must exist if given.
        allow_unknown: take a file whose hash is not the published one; `verified` is then False and
            scores made with it must not carry the metric's published name.
        download: fetch it into `~/.cache/ivvae` where nothing names a file and no cache has it.
        environment: instead of the process's own.

    Raises:
        ValueError: not found (the message says where to get it and where to put it), not the
            published file, or not to be downloaded.
    """
    environment = os.environ if environment is None else environment
    given = path or environment.get(weights.variable)
    folders = cache_folders()
    candidates = [Path(given)] if given else [folder / weights.file for folder in folders]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None and download and weights.url and not given:
        found = download_weights(weights, folders[1])
    if found is None:
        missing = f"{given}: no such file" if given else f"no {weights.file} found"
        raise ValueError(
            f"{weights.name}: {missing}. Get {weights.file} from {weights.source}, then put it "
            f"into {folders[0]}/ or {folders[1]}/, or set {weights.variable} to its path"
            f"{'; --download of the eval commands fetches it' if weights.url else ''}. "
            f"{weights.without}."
        )
    verified = weights.verify(found)
    if verified is False and not allow_unknown:
        raise ValueError(
            f"{found}: not the published {weights.file} ({_hashes(weights, found)}). Fetch it "
            f"again from {weights.source}, or allow unknown weights: the score then gets another "
            "name."
        )
    return WeightsFile(found, sha256_file(found), verified)


def download_weights(weights: PublishedWeights, folder: Path) -> Path:
    """Fetch a weights file into `folder`, where it appears only whole and with the known hash.

    Raises:
        ValueError: it cannot be fetched, or what came is not the published file.
    """
    assert weights.url is not None
    target = folder / weights.file
    with atomic_path(target) as temporary:
        try:
            _fetch(weights.url, temporary, weights.file)
        except OSError as error:
            raise ValueError(
                f"{weights.url}: could not be downloaded ({error}). Get {weights.file} by hand "
                f"from {weights.source} and put it into {folder}/."
            ) from None
        if weights.verify(temporary) is False:
            raise ValueError(
                f"{weights.url}: not the published {weights.file} any more "
                f"({_hashes(weights, temporary)}). Get it by hand from {weights.source}."
            )
    return target


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """What `torch.save` wrote of a model: names to tensors, on the CPU; nothing in it is executed.

    Raises:
        ValueError: not such a file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a state dict, but {type(state).__name__}")
    return state


def _fetch(url: str, target: Path, name: str) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(target, "wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc=f"download {name}", unit="B", unit_scale=True) as bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if size and file.tell() != size:
            raise OSError(f"{file.tell()} of {size} bytes came")


def _hashes(weights: PublishedWeights, path: Path) -> str:
    if weights.blob is not None:
        return f"git blob {git_blob_hash(path)}, published {weights.blob}"
    return f"sha256 {sha256_file(path)}, published {weights.sha256}..."


def git_blob_hash(path: str | Path) -> str:
    """The name git gives a file's content: SHA-1 of `blob <size>`, a zero byte and the bytes."""
    path = Path(path)
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
