"""Statistics of real clips in one small file, so that a score needs no real videos.

Our own files are safetensors: features, ids, protocol, hashes. Those that StyleGAN-V and
content-debiased FVD (cd-fvd) publish are pickles of sums; they are read by an unpickler that knows
how to put arrays together and refuses everything else.
"""

import io
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.files import atomic_path, sha256_file
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import CLIP_FIELDS, ClipSource
from eval.features.extractors import Extractor
from eval.features.feature_cache import FeatureSet
from eval.metrics.frechet import moments

SCHEMA = 1
FILES = (".safetensors", ".pkl")
ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", np.zeros(0).__reduce__()[0]),
            ("multiarray", "scalar", np.float64(0).__reduce__()[0]),
            ("numeric", "_frombuffer", np.zeros(1).__reduce_ex__(5)[0]),
        )
    },
}
"""All that a pickle of statistics may name, by numpy's old and new module names."""
CDFVD = re.compile(r"(i3d|videomae)_(\w+)_(full|\d+)_res(\d+)_len(\d+)_skip(\d+)_seed\d+\.pkl")
STYLEGAN_V = re.compile(r"(.+)-(i3d_torchscript)-[0-9a-f]{32}\.pkl")
DATA_SETS = {"ucf101": "UCF-101", "sky": "SkyTimelapse", "ffs": "FaceForensics"}


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Real clips of which only the features, or their moments, are left.

    Has what `evaluate_fvd` asks of a `ClipSource`.
    """

    folder: Path
    """The file."""
    mean: Float64[ndarray, " d"]
    covariance: Float64[ndarray, "d d"]
    count: int
    """Clips."""
    features: FeatureSet | None
    """None where the file holds only mean and covariance."""
    protocol: ClipProtocol
    """How the clips were cut, as far as it is known."""
    values: Mapping[str, Any]
    """What is known of the fields of `named_protocols.DEFAULTS`."""
    extractor: Mapping[str, Any]
    """`Extractor.describe`, or only the `name` where the file tells no more."""
    source: Mapping[str, Any]
    """`ClipSource.describe`; what is known of the clips."""

    def __len__(self) -> int:
        return self.count

    @property
    def rate(self) -> float | None:
        """Clip frames per second; None where the file does not tell."""
        return self.source.get("clip_fps")

    def content(self) -> str:
        """Hash of the clips, or of a file that holds none."""
        return self.source.get("content") or sha256_file(self.folder)

    def describe(self) -> dict[str, Any]:
        """What a result has to record about this side."""
        return {**self.source, "statistics": str(self.folder)}

    def notes(self, which: str) -> list[str]:
        """What a reader of a score has to know."""
        if self.features is not None:
            return []
        return [
            f"{self.folder.name} holds only mean and covariance of the {which} clips: no "
            "bootstrap, no value at infinity, no kernel distance, no precision and recall; whether "
            "its network had the same weights is not recorded."
        ]

    def check(self, extractor: Extractor) -> None:
        """Refuse (`ValueError`) another network than that of the file, naming both."""
        ours = extractor.describe()
        for name, theirs in self.extractor.items():
            if ours.get(name) != theirs:
                raise ValueError(
                    f"{self.folder}: made with {name}={theirs} of network "
                    f"{self.extractor['name']}, but this is {extractor.name} with "
                    f"{name}={ours.get(name)}"
                )
        if extractor.dimensions != len(self.mean):
            raise ValueError(
                f"{self.folder}: has {len(self.mean)} dimensions, but {extractor.name} gives "
                f"{extractor.dimensions}"
            )


def save_statistics(
    path: str | Path,
    features: FeatureSet,
    source: ClipSource,
    extractor: Extractor,
    values: Mapping[str, Any],
) -> None:
    """Write the real clips' features, their ids, protocol and hashes.

    Args:
        path: `.safetensors`.
        features: of the clips of `source`.
        values: `data_set` and `split`.
    """
    record = {
        "schema": SCHEMA,
        "extractor": extractor.describe(),
        "source": source.describe(),
        "ids": features.ids,
        "data_set": values["data_set"],
        "split": values["split"],
    }
    mean, covariance = moments(features.values)
    arrays = {"features": features.values, "mean": mean, "covariance": covariance}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata={"statistics": json.dumps(record)})


def load_statistics(path: str | Path) -> Statistics:
    """Read a file of `save_statistics`, of cd-fvd or of StyleGAN-V.

    The published pickles do not say what is in them: their published names do, so keep these.

    Raises:
        ValueError: no such file, damaged, of another schema, not finite, or a pickle of other
            things than arrays and numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file of statistics")
    found = _read_pickled(path) if path.suffix == ".pkl" else _read_own(path)
    d = len(found.mean)
    if found.covariance.shape != (d, d):
        raise ValueError(
            f"{path}: a mean of {d} dimensions, a covariance of {found.covariance.shape}"
        )
    if not (np.isfinite(found.mean).all() and np.isfinite(found.covariance).all()):
        raise ValueError(f"{path}: a moment is not finite")
    values = None if found.features is None else found.features.values
    if values is not None and values.shape[1:] != (d,):
        raise ValueError(f"{path}: a mean of {d} dimensions, features of {values.shape}")
    if values is not None and not np.isfinite(values).all():
        raise ValueError(f"{path}: a feature is not finite")
    if found.count < 2:
        raise ValueError(f"{path}: of {found.count} clip, but a covariance needs at least 2")
    return found


def _read_own(path: Path) -> Statistics:
    try:
        with safe_open(path, framework="numpy") as file:
            record = json.loads((file.metadata() or {}).get("statistics", "null"))
            schema = record.get("schema") if isinstance(record, dict) else None
            if schema != SCHEMA:
                raise ValueError(f"schema {schema}, but this version reads {SCHEMA}")
            arrays = {name: file.get_tensor(name) for name in ("features", "mean", "covariance")}
        source = record["source"]
        protocol = ClipProtocol(**{name: source[name] for name in CLIP_FIELDS})
        ids = record["ids"]
        if len(ids) != len(arrays["features"]):
            raise ValueError(f"{len(ids)} ids for {len(arrays['features'])} features")
        return Statistics(
            folder=path,
            mean=arrays["mean"],
            covariance=arrays["covariance"],
            count=len(ids),
            features=FeatureSet(arrays["features"], ids),
            protocol=protocol,
            values={
                "data_set": record["data_set"],
                "split": record["split"],
                **_clip_values(protocol),
                "preset": record["extractor"]["name"],
            },
            extractor=record["extractor"],
            source=source,
        )
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no file of eval_fvd --save_real, or damaged ({error})") from None


def _read_pickled(path: Path) -> Statistics:
    state = _unpickled(path)
    try:
        count = int(state["num_items"])
        raw_mean, raw_cov = (np.asarray(state[k], np.float64) for k in ("raw_mean", "raw_cov"))
        if raw_mean.ndim != 1 or count < 2:
            raise ValueError(f"{count} clips, sums of shape {raw_mean.shape}")
        mean = raw_mean / count
        covariance = raw_cov / count - np.outer(mean, mean)  # divided by N, as both do
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not statistics of StyleGAN-V or cd-fvd, which hold num_items, raw_mean and "
            f"raw_cov ({error})"
        ) from None
    if match := CDFVD.fullmatch(path.name):
        model, data, _, size, frames, stride = match.groups()
        name = {"i3d": "i3d_videogpt", "videomae": "videomae"}[model]
        protocol = ClipProtocol(
            frames=int(frames),
            stride=int(stride),
            start="random",
            num_clips=count,
            height=int(size),
            width=int(size),
        )
        values = {"data_set": DATA_SETS.get(data, data), "split": "train", "preset": name}
        values |= _clip_values(protocol)
    elif match := STYLEGAN_V.fullmatch(path.name):
        data, name = match.groups()
        protocol = ClipProtocol(num_clips=count, start="random")
        values = {"preset": name, "start_real": "random"}
    else:
        raise ValueError(
            f"{path}: its name does not tell network and frames. Keep the published one, such as "
            "i3d_ucf101_2048_res128_len16_skip1_seed0.pkl of cd-fvd"
        )
    return Statistics(
        folder=path,
        mean=mean,
        covariance=covariance,
        count=count,
        features=None,
        protocol=protocol,
        values=values,
        extractor={"name": name},
        source={"clips": count, "videos": count, "too_short": 0, "unreadable": {}},
    )


def _clip_values(protocol: ClipProtocol) -> dict[str, Any]:
    return {
        "frames": protocol.frames,
        "stride_real": protocol.stride,
        "start_real": protocol.start,
        "height": protocol.height,
        "width": protocol.width,
    }


class _ArraysOnly(pickle.Unpickler):
    """Puts numbers, text, lists, dictionaries and arrays together; refuses all other names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"names {module}.{name}, which statistics do not need")
        return ARRAYS[module, name]


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        state = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # noqa: BLE001 a damaged pickle raises nearly anything
        raise ValueError(f"{path}: not a pickle of arrays and numbers ({error})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not statistics by name")
    return state
