"""Networks that turn clips into the features a Fréchet distance compares, with their protocol."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.files import sha256_file
from common.published_weights import (
    C3D,
    C3D_MEAN,
    C3D_TORCHSCRIPT,
    I3D,
    I3D_TORCHSCRIPT,
    VIDEOMAE,
    VJEPA,
    VJEPA_PROBE,
)
from common.weights import find_weights, locate_weights, read_state_dict
from eval.features.c3d import FRAMES, ScriptedC3D, load_chainer, load_script
from eval.features.classifier import ClipClassifier
from eval.features.i3d import MIN_FRAMES, SIZE, InceptionI3D
from eval.features.preprocess import Resize, check_video, resize_frames
from eval.features.videomae import load_videomae
from eval.features.vjepa import load_vjepa

I3DPreset = Literal["i3d_tf", "i3d_videogpt", "i3d_torchscript"]
FVDPreset = Literal["i3d_tf", "i3d_videogpt", "i3d_torchscript", "videomae", "vjepa"]
"""Networks whose features can be compared. Only I3D's may be called FVD; vjepa gives JEDi."""
Distance = Literal["frechet", "jedi"]
CLASSES = 400  # of Kinetics, I3D's logits
PORTS: dict[I3DPreset, tuple[float, Resize]] = {
    "i3d_tf": (1e-3, "stretch"),
    "i3d_videogpt": (1e-5, "crop"),
}
"""Batch-norm eps and resize of each preset that runs our network."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network and everything that its features depend on."""

    name: str
    """Preset, such as `i3d_tf`, or the classifier's name."""
    network: nn.Module
    """Holds the weights; moved by `to`."""
    run: Callable[[Tensor], Tensor]
    """`b 3 t h w` in [-1, 1] to `b d`, at the network's own size."""
    weights_sha256: str
    """Of the weights file."""
    published: bool
    """Whether these are the published I3D weights, so that the distance may be called FVD."""
    score: str
    """What the score is called: `fvd` or `fvd_<name>`, `is` or `is_<name>`."""
    dimensions: int
    """Of the features."""
    output: Literal["features", "probabilities"] = "features"
    """Whether `run` gives features to compare or class probabilities."""
    distance: Distance = "frechet"
    """What the score is of two sets of features."""
    resize: Resize | None = None
    """How frames are brought to 224 pixels; None leaves the size to the network."""
    min_frames: int = 1
    """Shortest clip the network takes."""

    def to(self, device: str | torch.device) -> None:
        """Move the network."""
        self.network.to(device)

    @torch.inference_mode()
    def features(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d"]:
        """Features in float32, without TF32 or autocast.

        Raises:
            ValueError: not a float RGB video in [-1, 1], or too few frames.
        """
        check_video(video)
        if video.shape[2] < self.min_frames:
            raise ValueError(f"{video.shape[2]} frames, but {self.name} needs {self.min_frames}")
        with full_precision(video.device):
            if self.resize:
                video = resize_frames(video, SIZE, self.resize)
            return self.run(video.float())

    def describe(self) -> dict[str, Any]:
        """What a result has to record, and what cached features depend on."""
        return {
            "name": self.name,
            "output": self.output,
            "weights_sha256": self.weights_sha256,
            "published_weights": self.published,
            "resize": self.resize,
        }


def load_fvd_extractor(
    preset: FVDPreset = "i3d_tf",
    path: str | Path | None = None,
    *,
    allow_unknown: bool = False,
    download: bool = False,
) -> Extractor:
    """The network of a preset: see `load_i3d`; for `videomae`, the encoder of content-debiased FVD;
    for `vjepa`, that of JEDi, whose probe is looked for beside a given `path`, too.

    Raises:
        ValueError: weights not found, not the published ones, or not loadable.
    """
    if preset not in ("videomae", "vjepa"):
        return load_i3d(preset, path, allow_unknown=allow_unknown, download=download)
    distance: Distance
    if preset == "videomae":
        file = find_weights(VIDEOMAE, path, download=download)
        network, sha256 = load_videomae(file.path), file.sha256
        score, distance = "fvd_videomae", "frechet"
    else:
        file = find_weights(VJEPA, path, download=download)
        companion = Path(path).with_name(Path(VJEPA_PROBE.file).name) if path else None
        given = companion if companion and companion.is_file() else None
        probe = find_weights(VJEPA_PROBE, given, download=download)
        network = load_vjepa(file.path, probe.path)
        sha256 = hashlib.sha256(f"{file.sha256} {probe.sha256}".encode()).hexdigest()
        score, distance = "jedi", "jedi"
    return Extractor(
        name=preset,
        network=network,
        run=network,
        weights_sha256=sha256,
        published=False,
        score=score,
        dimensions=network.shape.dim,
        distance=distance,
        resize="stretch",
        min_frames=FRAMES,
    )


def load_i3d(
    preset: I3DPreset = "i3d_tf",
    path: str | Path | None = None,
    *,
    allow_unknown: bool = False,
    download: bool = False,
) -> Extractor:
    """I3D logits, the features of FVD.

    Args:
        preset: `i3d_tf`: eps 1e-3, frames stretched; `i3d_videogpt`: eps 1e-5, center crop;
            `i3d_torchscript`: StyleGAN-V's program, which resizes by itself.
        path: the weights file; see `find_weights` for where it is looked for otherwise.
        allow_unknown: take other weights than the published; the score is then `fvd_unverified`.
        download: fetch them if they are missing.

    Raises:
        ValueError: weights not found, not the published ones, or not loadable.
    """
    weights = I3D_TORCHSCRIPT if preset == "i3d_torchscript" else I3D
    file = find_weights(weights, path, allow_unknown=allow_unknown, download=download)
    published = file.verified is True
    resize = None
    if preset == "i3d_torchscript":
        network = load_script(file.path)
        run = partial(network, rescale=False, resize=True, return_features=True)
    else:
        eps, resize = PORTS[preset]
        network = run = InceptionI3D(eps)
        try:
            network.load_state_dict(read_state_dict(file.path))
        except (RuntimeError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{file.path}: not the state dict of I3D ({reason})") from None
    return Extractor(
        name=preset,
        network=network,
        run=run,
        weights_sha256=file.sha256,
        published=published,
        score="fvd" if published else "fvd_unverified",
        dimensions=CLASSES,
        resize=resize,
        min_frames=MIN_FRAMES,
    )


def load_classifier(
    folder: str | Path, output: Literal["features", "probabilities"] = "features"
) -> Extractor:
    """Features or probabilities of a `ClipClassifier`, from the folder of `save_pretrained`.

    The score is called `fvd_<folder's name>` or `is_<...>` (the run's name for `<run>/export`): it
    is a Fréchet distance, but not FVD, and compares only with scores of the same classifier.

    Raises:
        ValueError: not such a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder. Make it with scripts/train_classifier.py.")
    network = ClipClassifier.from_pretrained(folder).eval()
    shape = network.config
    place = folder.resolve()
    name = place.parent.name if place.name == "export" else place.name
    return Extractor(
        name=name,
        network=network,
        run=network.features if output == "features" else lambda x: network(x).softmax(dim=1),
        weights_sha256=sha256_file(folder / "model.safetensors"),
        published=False,
        score=f"fvd_{name}" if output == "features" else f"is_{name}",
        dimensions=(4 * shape.width if output == "features" else shape.num_classes),
        output=output,
    )


def load_c3d(
    path: str | Path | None = None,
    mean: str | Path | None = None,
    *,
    sha256: str | None = None,
    download: bool = False,
) -> Extractor:
    """C3D's class probabilities on UCF-101: what IS is computed from.

    Args:
        path: TGANv2's `conv3d_deepnetA_ucf.npz`, which needs `mean2.npz` beside it, or StyleGAN-V's
            TorchScript program; told apart by the ending. By default the first of them that is
            found where `find_weights` looks.
        mean: `mean2.npz`; by default where `find_weights` looks.
        sha256: what the weights file must have. No hash of the published files is known here: who
            gives one vouches for the file, and the score is called `is`, else `is_unverified`.
        download: fetch TGANv2's files if none are found.

    Raises:
        ValueError: weights not found, not loadable, or of another sha256.
    """
    there = (weights for weights in (C3D, C3D_TORCHSCRIPT) if locate_weights(weights, path))
    file = find_weights(next(there, C3D), path, download=download)
    if sha256 and file.sha256 != sha256.lower():
        raise ValueError(f"{file.path}: its sha256 is {file.sha256}, not {sha256}")
    if file.path.suffix == ".npz":
        network = load_chainer(file.path, find_weights(C3D_MEAN, mean, download=download).path)
    else:
        network = ScriptedC3D(file.path)
    return Extractor(
        name="c3d",
        network=network,
        run=network.probabilities,
        weights_sha256=file.sha256,
        published=sha256 is not None,
        score="is" if sha256 else "is_unverified",
        dimensions=101,
        output="probabilities",
        min_frames=FRAMES,
    )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 convolutions and products without TF32, outside autocast; restores the settings."""
    matmul = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            cudnn.flags(
                enabled=cudnn.enabled,
                benchmark=cudnn.benchmark,
                deterministic=cudnn.deterministic,
                allow_tf32=False,
            ),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
