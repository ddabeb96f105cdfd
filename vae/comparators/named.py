"""Several VAEs at once, under names of their own; of those that are not there, what they lack."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.files import read_json
from common.pretrained import WeightsNotFound
from vae.comparators.base import Comparator
from vae.comparators.protocol import native_window
from vae.image_vae import ImageVAE
from vae.model import VideoVAE
from vae.registry import as_windowed, load_vae

AnyVAE = VideoVAE | ImageVAE | Comparator


def named_sources(given: Sequence[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """Name to source of VAEs given as `source` or `name=source`.

    Raises:
        ValueError: a name that is `taken`, given twice or no plain file name.
    """
    sources: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not equals:
            name, source = re.sub(r"[^\w.-]+", "_", text).strip("._"), text
        if not re.fullmatch(r"[\w-][\w.-]*", name) or name in (*taken, *sources):
            raise ValueError(
                f"vae={text}: its name {name!r} is taken or no plain file name. "
                "Give it one: name=path."
            )
        sources[name] = source
    return sources


def load_found(
    sources: Mapping[str, str], *, windowed: bool = False
) -> tuple[dict[str, AnyVAE], dict[str, str]]:
    """The VAEs whose weights are there, in eval mode, and of the others what to put where.

    Args:
        windowed: run those whose own inference has windows in them.
    Raises:
        ValueError: no weights at all, or such as are of no use.
    """
    vaes: dict[str, AnyVAE] = {}
    missing: dict[str, str] = {}
    for name, source in sources.items():
        try:
            vaes[name] = _load(source, windowed)
        except WeightsNotFound as error:
            if len(sources) == 1:
                raise
            missing[name] = error.remedy
    if not vaes:
        raise ValueError("; ".join(f"{name}: {remedy}" for name, remedy in missing.items()))
    return vaes, missing


def _load(source: str, windowed: bool) -> AnyVAE:
    file = Path(source) / "config.json"
    if file.is_file() and read_json(file).get("model_class") == ImageVAE.__name__:
        return ImageVAE.from_pretrained(source)
    vae = load_vae(source)
    return as_windowed(vae) if windowed and native_window(vae) else vae
