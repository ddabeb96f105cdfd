"""The weights that the training of a comparator begins with."""

import logging
from dataclasses import asdict

import torch
from torch import nn

from common.config import differences
from common.pretrained import saved_class
from vae.comparators.base import Comparator, ComparatorConfig
from vae.comparators.diffusers_vae import ADAPTERS, DiffusersConfig
from vae.comparators.od_vae import ODVAE, ODVAEConfig, to_group_causal
from vae.posterior import start_narrow
from vae.registry import COMPARATORS, load_vae

log = logging.getLogger(__name__)

OWN_CLASSES = ("ImageVAE", "VideoVAE")
UNTRAINED = {"latent_mean", "latent_std", "windows"}
"""Fields of a config that training does not depend on."""


def initial_comparator(config: ComparatorConfig, source: str | None) -> Comparator:
    """The model that training begins with; logs where its weights are from.

    Args:
        source: what `load_vae` takes: an export, or `name:where` with official weights. None:
            random weights. OD-VAE's weights also start the OD-VAE with group causal convolutions.
    Raises:
        ValueError: weights that are not there, of another kind or of another size. Nothing is
            inflated: these models' norms see all frames of a window, an image VAE's only one.
    """
    kinds = COMPARATORS.values()
    if isinstance(config, DiffusersConfig):
        kinds = [ADAPTERS[config.model]]
    kind: type[Comparator] = next(kind for kind in kinds if kind.config_class is type(config))
    if source is None:
        log.info("%s: all weights are new", kind.title)
        model = kind(config)  # type: ignore[arg-type]
        _narrow_posterior(model)
        return model
    held = saved_class(source)
    if held in OWN_CLASSES or source.startswith("ivvae:"):
        raise ValueError(
            f"{source}: holds {held or 'an IV-VAE'}, but {kind.title} cannot be inflated from "
            f"another model: its GroupNorms see all frames of a clip at once. Start from weights "
            "of its own kind (an export, or name:path) or from random ones (init_from: null)."
        )
    model = load_vae(source)
    if not isinstance(model, kind):
        raise ValueError(f"{source}: holds a {type(model).__name__}, not a {kind.__name__}")
    if isinstance(model, ODVAE) and isinstance(config, ODVAEConfig):
        replaced = (model.config.temporal, config.temporal) == ("causal", "group_causal")
        model = to_group_causal(model) if replaced else model
    found, wanted = (
        {name: value for name, value in asdict(part).items() if name not in UNTRAINED}
        for part in (model.config, config)
    )
    if changes := differences(found, wanted):
        raise ValueError(
            f"{source}: these start weights do not fit the model: {'; '.join(changes)}. "
            "Change model to their size, or start from others."
        )
    log.info("%s: all weights are from %s", kind.title, source)
    return model.train()


def _narrow_posterior(model: Comparator) -> None:
    """Let draws stay near the mean at first, as those of a new IV-VAE do."""
    names = model.encoder_modules
    encoder = [module for name, module in model.named_modules() if name.startswith(names)]
    last = [m for m in encoder if isinstance(m, nn.Conv2d | nn.Conv3d | nn.Linear)][-1]
    log_variances = slice(model.config.z_dim, None)  # none where the posterior is a point
    with torch.no_grad():
        start_narrow(
            last.weight[log_variances], None if last.bias is None else last.bias[log_variances]
        )
