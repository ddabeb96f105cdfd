"""VAEs by name: `cv_vae:/path`, `cogvideox:THUDM/CogVideoX-2b`; a bare path: our exports."""

import hashlib
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.files import read_json
from vae.comparators.base import Comparator, ComparatorConfig
from vae.comparators.cogvideox import CogVideoXConfig, CogVideoXVAE
from vae.comparators.cv_vae import CVVAE, CVVAEConfig
from vae.comparators.od_vae import ODVAE, ODVAEConfig, to_group_causal
from vae.comparators.opensora_v12 import OpenSoraConfig, OpenSoraVAE
from vae.comparators.protocol import native_window
from vae.comparators.wan import WanConfig, WanVAE
from vae.config import VAEConfig
from vae.model import VideoVAE, weights_hash

OURS = "ivvae"
COMPARATORS: dict[str, type[Comparator]] = {
    "cv_vae": CVVAE,
    "od_vae": ODVAE,
    "opensora_v12": OpenSoraVAE,
    "cogvideox": CogVideoXVAE,
    "wan": WanVAE,
}
"""Models of others by name."""
GCCONV = "od_vae_gcconv"
"""OD-VAE's weights in group causal convolutions, for fine-tuning."""
OTHERS = (*COMPARATORS, GCCONV)
"""All names that `new_vae` takes."""
NAMES = (OURS, *OTHERS)
"""All names that `load_vae` takes."""


def load_vae(
    source: str | Path, *, windowed: bool = False, **options: Any
) -> VideoVAE | Comparator:
    """A VAE in eval mode.

    Args:
        source: `name:where` with one of `NAMES` and a path or hub id of the official weights or of
            an export of ours; without a name an export of ours, or a hub id of a `VideoVAE`.
        windowed: run videos in the windows of the model's official inference, not as one.
        options: of the hub: `revision`, `token`, `cache_dir`, `local_files_only`.
    Raises:
        ValueError: unknown name, nothing there, or weights of another model or version.
    """
    name, where = split_source(str(source))
    kind = COMPARATORS.get("od_vae" if name == GCCONV else name)
    if kind is None:
        model: VideoVAE | Comparator = VideoVAE.from_pretrained(where, **options)
    elif _exported(where) is not None:
        model = kind.from_pretrained(where)
    else:
        model = kind.from_official(where, **options)
    if name == GCCONV and isinstance(model, ODVAE) and model.config.temporal == "causal":
        model = to_group_causal(model)
    return as_windowed(model) if windowed else model


def new_vae(name: str, like: VAEConfig) -> Comparator:
    """A comparator with random weights, as much smaller than the published one as `like` is than
    the released IV-VAE; for training and for comparisons at an equal budget.

    Raises:
        ValueError: unknown name.
    """
    return _class(name)(comparator_config(name, like))


def comparator_config(name: str, like: VAEConfig) -> ComparatorConfig:
    """The config of `new_vae`: z_dim and num_blocks of `like`, and widths in proportion to its dim.

    So is the number of groups of the norms: with as many groups as channels each channel would lose
    its own mean, and the last norm the clip's brightness.

    Raises:
        ValueError: unknown name, or sizes that do not fit.
    """
    config = _class(name).config_class()
    statistics = {"latent_mean": (0.0,), "latent_std": (1.0,)}

    def scaled(count: int) -> int:
        return max(1, count * like.dim // VAEConfig().dim)

    def groups(*channels: int) -> int:
        return math.gcd(scaled(32), *channels)

    changes: dict[str, Any] = {"z_dim": like.z_dim, **statistics}
    if isinstance(config, CVVAEConfig | ODVAEConfig | WanConfig):
        changes |= {"dim": scaled(config.dim), "num_blocks": like.num_blocks}
    if isinstance(config, CVVAEConfig | ODVAEConfig):
        changes["norm_groups"] = groups(changes["dim"])
    if isinstance(config, OpenSoraConfig):
        dims = {name: scaled(128) for name in ("spatial_dim", "temporal_dim")}
        blocks = {"spatial_blocks": like.num_blocks, "temporal_blocks": 2 * like.num_blocks}
        changes |= {**dims, **blocks, "norm_groups": groups(scaled(128))}
    if isinstance(config, CogVideoXConfig):
        channels = tuple(map(scaled, config.channels))
        blocks = {"num_blocks": like.num_blocks + 1}
        changes |= {"channels": channels, **blocks, "norm_groups": groups(*channels)}
    if name == GCCONV:
        changes["temporal"] = "group_causal"
    return replace(config, **changes)


def _class(name: str) -> type[Comparator]:
    if name == GCCONV:
        return ODVAE
    if name not in COMPARATORS:
        raise ValueError(f"no comparator {name!r}: use one of {', '.join(OTHERS)}")
    return COMPARATORS[name]


def vae_hash(vae: VideoVAE | Comparator) -> str:
    """Hex sha256 that tells apart VAEs whose latents differ: of the weights and, where a
    comparator's config says something that its weights do not (GCConv, windows), of that too.
    """
    told = weights_hash(vae)
    usual = type(vae.config)()
    untold = {
        name: getattr(vae.config, name)
        for name in ("temporal", "windowed")
        if isinstance(vae, Comparator)
        and getattr(vae.config, name, None) != getattr(usual, name, None)
    }
    return hashlib.sha256(f"{told} {untold}".encode()).hexdigest() if untold else told


def split_source(source: str) -> tuple[str, str]:
    """Name and where of what `load_vae` takes; a path's name is told by the export it holds."""
    name, colon, where = source.partition(":")
    if colon and re.fullmatch(r"\w{2,}", name):
        if name not in NAMES:
            raise ValueError(f"{source}: no VAE named {name!r}: use one of {', '.join(NAMES)}")
        if not where:
            raise ValueError(f"{source}: say where its weights are, as in {name}:PATH")
        return name, where
    for name, kind in COMPARATORS.items():
        if _exported(source) == kind.__name__:
            return name, source
    return OURS, source


def _exported(where: str) -> str | None:
    """The class of a folder of our own format."""
    config = Path(where) / "config.json"
    return read_json(config).get("model_class") if config.is_file() else None


def as_windowed(model: VideoVAE | Comparator) -> Comparator:
    """The model itself, which now runs videos in the windows of its official inference.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(model, Comparator) or native_window(model) is None:
        title = getattr(model, "title", type(model).__name__)
        raise ValueError(f"{title}: its result does not depend on windows; leave out windowed")
    model.config = replace(model.config, windowed=True)
    return model
