"""VAEs by name: `cv_vae:/path`, `cogvideox:THUDM/CogVideoX-2b`; a bare path: our exports."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.pretrained import saved_class
from common.weights import WeightsNotFound, find_weights
from vae.base import VideoAutoencoder
from vae.comparators.base import Comparator, ComparatorConfig, InferenceWindows, SDConfig
from vae.comparators.cv_vae import CVVAE
from vae.comparators.diffusers_vae import ADAPTERS, DiffusersConfig, small_config
from vae.comparators.od_vae import ODVAE, to_group_causal
from vae.comparators.opensora_v12 import OpenSoraConfig, OpenSoraVAE
from vae.config import PRESETS, VAEConfig
from vae.image_vae import ImageVAE
from vae.model import VideoVAE

OURS = "ivvae"
COMPARATORS: dict[str, type[Comparator]] = {
    "cv_vae": CVVAE,
    "od_vae": ODVAE,
    "opensora_v12": OpenSoraVAE,
    **ADAPTERS,
}
"""Models of others by name."""
GCCONV = "od_vae_gcconv"
"""OD-VAE's weights in group causal convolutions, for fine-tuning."""
OTHERS: dict[str, type[Comparator]] = {**COMPARATORS, GCCONV: ODVAE}
"""The same, and what is made of them."""
NAMES = (OURS, *OTHERS)
"""All names that `load_vae` takes."""
ARCHITECTURES = (*PRESETS, *OTHERS)
"""What can be trained: rows of the paper's ablation, and models of others."""


def load_vae(
    source: str | Path, *, windows: InferenceWindows | None = None, **options: Any
) -> VideoAutoencoder:
    """A VAE in eval mode.

    Args:
        source: `name:where` with one of `NAMES` and a path or hub id of the official weights or of
            an export of ours; a name of `OTHERS` alone, for official weights where `find_weights`
            looks; without a name an export of ours, or a hub id of a `VideoVAE`.
        windows: run videos in the windows of the authors' inference, or in a single one; default:
            as the export says, which for official weights is the authors'.
        options: of the hub: `revision`, `token`, `cache_dir`, `local_files_only`.
    Raises:
        ValueError: unknown name, nothing there, weights of another model or version, or `windows`
        for a model whose result does not depend on them.
    """
    name, where = split_source(str(source))
    kind = OTHERS.get(name)
    if kind is None:
        model: VideoAutoencoder = VideoVAE.from_pretrained(where, **options)
    elif saved_class(where) is not None:
        model = kind.from_pretrained(where)
    else:
        model = kind.from_official(where, **options)
    if name == GCCONV and isinstance(model, ODVAE) and model.config.temporal == "causal":
        model = to_group_causal(model)
    if windows is not None:
        if model.native_window is None:
            raise ValueError(
                f"{model.title}: its result does not depend on windows; leave out windows"
            )
        model.config = replace(model.config, windows=windows)
    return model


def load_found(
    sources: Mapping[str, str], *, windows: InferenceWindows = "official"
) -> tuple[dict[str, VideoAutoencoder], dict[str, str]]:
    """The VAEs and image VAEs whose weights are there, in eval mode, and of the others what to put
    where.

    Args:
        sources: by name, as `named_sources` gives them.
        windows: of those whose result depends on them.
    Raises:
        ValueError: no weights at all, or such as are of no use.
    """
    vaes: dict[str, VideoAutoencoder] = {}
    missing: dict[str, str] = {}
    for name, source in sources.items():
        try:
            image = saved_class(source) == ImageVAE.__name__
            vae = ImageVAE.from_pretrained(source) if image else load_vae(source)
        except WeightsNotFound as error:
            if len(sources) == 1:
                raise
            missing[name] = error.remedy
            continue
        if vae.native_window is not None:
            vae.config = replace(vae.config, windows=windows)
        vaes[name] = vae
    if not vaes:
        raise ValueError("; ".join(f"{name}: {remedy}" for name, remedy in missing.items()))
    return vaes, missing


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
                f"vae={text}: its name {name!r} is already used or not a valid file "
                "name (letters, digits, _ . -). Give another: name=path."
            )
        sources[name] = source
    return sources


def architecture_config(name: str, model: VAEConfig) -> VAEConfig | ComparatorConfig:
    """The video VAE of one of `ARCHITECTURES`, with what it does not decide taken from `model`.

    A row of the ablation whose width differs from the released model's keeps the proportion to
    `model`'s; a model of others is scaled by `comparator_config`.

    Raises:
        ValueError: unknown name, or sizes that do not fit.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture={name!r}: use one of {', '.join(ARCHITECTURES)}")
    if name in OTHERS:
        return comparator_config(name, model)
    changes, released = dict(PRESETS[name]), VAEConfig().dim
    changes["dim"] = model.dim * changes.get("dim", released) // released
    return replace(model, **changes)


def comparator_config(name: str, like: VAEConfig) -> ComparatorConfig:
    """A config as much smaller than the published one as `like` is than the released IV-VAE, for
    training and comparisons at an equal budget: z_dim and num_blocks of `like`, and widths in
    proportion to its dim.

    So is the number of groups of the norms: with as many groups as channels each channel would lose
    its own mean, and the last norm the clip's brightness.

    Raises:
        ValueError: unknown name, or sizes that do not fit.
    """
    if name in ADAPTERS:
        return small_config(name, like)
    config = published_config(name)
    statistics = {"latent_mean": (0.0,), "latent_std": (1.0,)}

    def scaled(count: int) -> int:
        return max(1, count * like.dim // VAEConfig().dim)

    def groups(*channels: int) -> int:
        return math.gcd(scaled(32), *channels)

    changes: dict[str, Any] = {"z_dim": like.z_dim, **statistics}
    if isinstance(config, SDConfig):
        changes |= {"dim": scaled(config.dim), "num_blocks": like.num_blocks}
        changes["norm_groups"] = groups(changes["dim"])
    if isinstance(config, OpenSoraConfig):
        dims = {name: scaled(128) for name in ("spatial_dim", "temporal_dim")}
        blocks = {"spatial_blocks": like.num_blocks, "temporal_blocks": 2 * like.num_blocks}
        changes |= {**dims, **blocks, "norm_groups": groups(scaled(128))}
    if name == GCCONV:
        changes["temporal"] = "group_causal"
    return replace(config, **changes)


def published_config(name: str) -> ComparatorConfig:
    """The config of the published model, as far as it is known without its files.

    Raises:
        ValueError: unknown name.
    """
    if name not in OTHERS:
        raise ValueError(f"no comparator {name!r}: use one of {', '.join(OTHERS)}")
    return DiffusersConfig(model=name) if name in ADAPTERS else OTHERS[name].config_class()


def split_source(source: str) -> tuple[str, str]:
    """Name and where of what `load_vae` takes; a path's name is told by the export it holds.

    Raises:
        ValueError: unknown name, or (`WeightsNotFound`) a name alone whose weights are not found.
    """
    if source in OTHERS and not Path(source).exists():
        return source, str(find_weights(OTHERS[source].published).path)
    name, colon, where = source.partition(":")
    if colon and re.fullmatch(r"\w{2,}", name):
        if name not in NAMES:
            raise ValueError(f"{source}: no VAE named {name!r}: use one of {', '.join(NAMES)}")
        if not where:
            raise ValueError(f"{source}: say where its weights are, as in {name}:PATH")
        return name, where
    for name, kind in COMPARATORS.items():
        if saved_class(source) == kind.__name__:
            return name, source
    return OURS, source
