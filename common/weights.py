"""Where the weights of the published metrics are, and whether they are the published ones; reading
weights that others have written."""

import hashlib
import os
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from common.files import atomic_path, sha256_file

BLOCK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
DAMAGED = (UnpicklingError, SafetensorError)
SHOWN = 8  # problems of a state dict named in an error


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A file that users have to fetch themselves."""

    name: str
    """What it is, in words."""
    file: str
    """File it is looked for under, in each folder that is searched."""
    use: str
    """What needs it, such as `FVD`."""
    variable: str
    """Environment variable that may hold its path."""
    source: str
    """Where it is published, in words."""
    size: float
    """Megabytes, about: of the file, or of what is read of it in float32, beside which a training
    checkpoint holds more."""
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


class WeightsNotFound(ValueError):
    """There are no weights where they were looked for."""

    def __init__(self, message: str, remedy: str = ""):
        """`remedy`: the message in short: what to put where."""
        super().__init__(message)
        self.remedy = remedy

    @classmethod
    def at(cls, source: str | Path, reason: str, put: str) -> "WeightsNotFound":
        """`reason`: what is there instead; `put`: what to put there, to end "put ... at SOURCE"."""
        remedy = f"weights not found: put {put}"
        return cls(f"{source}: {reason}; {remedy}", remedy)


@dataclass(frozen=True)
class WeightsFile:
    """A file that was found."""

    path: Path
    sha256: str
    verified: bool | None = None
    """Whether it is the published file; None where that cannot be told."""


def cache_folders() -> list[Path]:
    """Folders that are searched, in this order: `weights` here, `~/.cache/ivvae`, torch hub's."""
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    return [Path("weights"), Path.home() / ".cache" / "ivvae", hub]


def locate_weights(weights: PublishedWeights, path: str | Path | None = None) -> Path | None:
    """Where a weights file is: at `path`, else where its environment variable says, else in the
    first of `cache_folders` that has it; None where it is not.

    Training, evaluation and `scripts/doctor.py` all look by this function.
    """
    given = _given(weights, path)
    candidates = [given] if given else [folder / weights.file for folder in cache_folders()]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def find_weights(
    weights: PublishedWeights,
    path: str | Path | None = None,
    *,
    allow_unknown: bool = False,
    download: bool = False,
) -> WeightsFile:
    """Find a weights file where `locate_weights` looks, and see whether it is the published one.

    Args:
        weights: what is looked for.
        path: the file; must exist if given.
        allow_unknown: take a file whose hash is not the published one; `verified` is then False and
            scores made with it must not carry the metric's published name.
        download: fetch it into `~/.cache/ivvae` where nothing names a file and no cache has it.

    Raises:
        WeightsNotFound: the message says where to get it and where to put it.
        ValueError: not the published file, or not to be downloaded.
    """
    found, given = locate_weights(weights, path), _given(weights, path)
    if found is None and download and weights.url and not given:
        found = download_weights(weights, cache_folders()[1])
    if found is None:
        missing = f"{given}: no such file" if given else f"no {weights.file} found"
        raise WeightsNotFound(
            f"{weights.name}: {missing}. {how_to_get(weights)}"
            f"{'; --download of the eval commands fetches it' if weights.url else ''}. "
            f"{weights.without}.",
            f"weights not found: {missing}; {how_to_get(weights)}",
        )
    verified = weights.verify(found)
    if verified is False and not allow_unknown:
        raise ValueError(
            f"{found}: not the published {weights.file} ({_hashes(weights, found)}). Fetch it "
            f"again from {weights.source}, or allow unknown weights: the score then gets another "
            "name."
        )
    return WeightsFile(found, sha256_file(found), verified)


def how_to_get(weights: PublishedWeights) -> str:
    """Where a file is published, how large it is, and where to put it."""
    first, second, _ = cache_folders()
    file = Path(weights.file)
    below = "" if file.parent == Path() else f"{file.parent}/"
    return (
        f"Get {file.name} ({weights.size:g} MB) from {weights.source}, then put it into "
        f"{first / below}/ or {second / below}/, or set {weights.variable} to its path"
    )


def _given(weights: PublishedWeights, path: str | Path | None) -> Path | None:
    given = path or os.environ.get(weights.variable)
    return Path(given) if given else None


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
    """What a safetensors file or `torch.save` holds of a model, on the CPU; no code in it is run.

    Raises:
        ValueError: damaged, more than plain values, or nothing by name.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, *DAMAGED) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: not a readable checkpoint of plain weights, or damaged ({reason})"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not weights by name")
    return state


def check_state(state: Mapping[str, Any], wanted: Mapping[str, Tensor], title: str) -> None:
    """Refuse what is not tensors of the names and shapes of `wanted`.

    Raises:
        ValueError: `title`, then what is missing, unexpected or misshapen.
    """
    problems = [f"missing {name}" for name in wanted if name not in state]
    for name, value in state.items():
        if name not in wanted:
            problems.append(f"unexpected {name}")
        elif not isinstance(value, Tensor):
            problems.append(f"{name} is a {type(value).__name__}, not a tensor")
        elif value.shape != wanted[name].shape:
            shapes = tuple(value.shape), tuple(wanted[name].shape)
            problems.append(f"{name} has shape {shapes[0]}, not {shapes[1]}")
    refuse_state(problems, title)


def refuse_state(problems: Sequence[str], title: str) -> None:
    """Raise ValueError with `title` and the first problems, unless there are none."""
    if problems:
        rest = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{title}: {'; '.join(problems[:SHOWN])}{rest}")


def _fetch(url: str, target: Path, name: str) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(target, "wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc=f"download {name}", unit="B", unit_scale=True) as bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if size and file.tell() != size:
            raise OSError(f"incomplete download: {file.tell()} of {size} bytes")


def _hashes(weights: PublishedWeights, path: Path) -> str:
    if weights.blob is not None:
        return f"git blob {git_blob_hash(path)}, published {weights.blob}"
    return f"sha256 {sha256_file(path)}, published {weights.sha256}..."


def git_blob_hash(path: str | Path) -> str:
    """The name git gives a file's content: SHA-1 of `blob <size>`, a zero byte and the bytes."""
    path = Path(path)
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()
