"""Official checkpoints: find the files, tell sizes by them, name what differs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn

from common.files import read_json
from common.pretrained import OUT_OF_REACH, hub_file
from common.weights import PublishedWeights, WeightsNotFound, check_state


def find(
    source: str | Path, names: Sequence[str], published: PublishedWeights, **options: Any
) -> tuple[Path, dict[str, Any]]:
    """The file of weights, and the config.json beside it ({} if there is none).

    Args:
        source: the file itself, a folder, or a hub id, whose third part is a folder in it.
        names: where the weights may be inside the folder or repository, best first.
        published: the file, for the error.
        options: of `hub_file`.
    Raises:
        WeightsNotFound: none of it is there.
    """
    path = Path(source)
    if path.is_file():
        return path, _config(path.with_name("config.json"))
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name, _config((path / name).with_name("config.json"))
        reason = f"holds none of {', '.join(names)}"
    else:
        found, reason = None, "what can only be a path"
        if "/" in str(source) and not str(source).startswith(("/", ".", "~")):
            found, reason = _download(str(source), names, options)
        if found is not None:
            return found
        reason = f"no such file or folder, nor a hub id within reach ({reason})"
    files = f"{Path(published.file).name} of {published.source}"
    raise WeightsNotFound.at(source, reason, f"{files}, at {source}")


def check_flags(path: Path, config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a config.json that says something else than `expected`; what it leaves out is fine.

    Raises:
        ValueError: names each difference.
    """
    wrong = [
        f"{name} is {json.dumps(config[name])}, not {json.dumps(value)}"
        for name, value in expected.items()
        if name in config and config[name] != value
    ]
    if wrong:
        raise ValueError(f"{path}: a checkpoint of another version: {'; '.join(wrong)}")


def size(path: Path, state: Mapping[str, Any], key: str, axis: int) -> int:
    """The extent of a tensor that tells a size of the model.

    Raises:
        ValueError: there is no such tensor, or it has fewer axes.
    """
    value = state.get(key)
    if not isinstance(value, Tensor) or value.ndim <= axis:
        raise ValueError(f"{path}: a checkpoint of another model: it has no {key}")
    return value.shape[axis]


def widths(path: Path, state: Mapping[str, Any], pattern: str) -> tuple[int, tuple[int, ...]]:
    """Channels of the first level, and those of all four in units of them.

    `pattern` is the key of the first convolution of level {}.
    """
    channels = [size(path, state, pattern.format(level), 0) for level in range(4)]
    return channels[0], tuple(width // channels[0] for width in channels)


def load(module: nn.Module, state: Mapping[str, Any], path: Path, title: str) -> None:
    """Give `module` the weights `state`.

    Raises:
        ValueError: missing, unexpected or misshapen tensors, each named.
    """
    check_state(state, module.state_dict(), f"{path}: not a {title}")
    module.load_state_dict({name: value.float() for name, value in state.items()})


def _download(
    source: str, names: Sequence[str], options: dict[str, Any]
) -> tuple[tuple[Path, dict[str, Any]] | None, str]:
    """What `find` finds on the hub, or None and why not."""
    repository, folder = _split(source)
    reason = ""
    for name in names:
        try:
            weights = hub_file(repository, f"{folder}{name}", **options)
        except OUT_OF_REACH as error:
            reason = reason or str(error).splitlines()[0]
            if isinstance(error, LocalEntryNotFoundError):  # no network: ask it only once
                options = {**options, "local_files_only": True}
            continue
        parent = f"{folder}{name}".rpartition("/")[0]
        try:
            config = hub_file(repository, f"{parent}/config.json".lstrip("/"), **options)
        except (HfHubHTTPError, LocalEntryNotFoundError):
            return (weights, {}), ""
        return (weights, _config(config)), ""
    return None, reason


def _split(source: str) -> tuple[str, str]:
    """Hub id and folder in it, which ends in a slash or is empty."""
    parts = source.strip("/").split("/")
    folder = "/".join(parts[2:])
    return "/".join(parts[:2]), f"{folder}/" if folder else ""


def _config(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
