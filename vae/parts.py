"""Parts of a VAE: which weights make latents and which make frames, training some, hashes of each.

Latents, and all that is trained on them, stay valid as long as the encoder's hash does.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields

import torch
from torch import Tensor, nn

from engine.optimization import trainable
from vae.base import VideoAutoencoder
from vae.config import Size

log = logging.getLogger(__name__)

SIDES = ("encoder", "decoder")
"""All that makes latents of frames, and all that makes frames of latents."""


def weights_hash(model: nn.Module) -> str:
    """Hex sha256 over names, types, shapes and values of the state dict, whatever the device."""
    return _hash(model.state_dict().items())


def encoder_hash(vae: VideoAutoencoder) -> str:
    """Hex sha256 of all that latents depend on: the weights of `encoder_modules`, and of the config
    what differs from its defaults, such as how convolutions join frames, the windows, and the mean
    and standard deviation of latents. VAEs that differ in their decoders alone share it.
    """
    return _hash(_side(vae, "encoder"), _settings(vae))


def decoder_hash(vae: VideoAutoencoder) -> str:
    """Hex sha256 of all that frames depend on, given latents."""
    return _hash(_side(vae, "decoder"), _settings(vae))


def vae_hash(vae: VideoAutoencoder) -> str:
    """Hex sha256 of both sides."""
    return hashlib.sha256(f"{encoder_hash(vae)} {decoder_hash(vae)}".encode()).hexdigest()


def freeze_others(vae: VideoAutoencoder, parts: Sequence[str], size: Size) -> None:
    """Leave only `parts` to training; all other weights take no gradients and keep their bits.

    Args:
        parts: "encoder" and "decoder" (`SIDES`), or names of modules, such as `decoder.head`.
        size: frames, height and width of a clip of the run.
    Raises:
        ValueError: an unknown part, one without parameters, or one that no loss reaches.
    """
    chosen = {part: _parameters_of(vae, part) for part in parts}
    trained = {name for names in chosen.values() for name in names}
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(name in trained)
    reached = _reached(vae, size)
    for part, names in chosen.items():
        if reached.isdisjoint(names):
            raise ValueError(
                f"train_only={part}: no loss of clips of {size[0]} x {size[1]} x {size[2]} (t, h, "
                "w) depends on its weights. Leave it out, or train on other clips."
            )
    if not trains(vae, "encoder"):
        _stop_dropout(vae)
    count, whole = (sum(p.numel() for p in of) / 1e6 for of in (trainable(vae), vae.parameters()))
    shown = "trained: %s, %.2f of %.2f M parameters; all others are frozen"
    log.info(shown, ", ".join(parts), count, whole)


def trains(vae: VideoAutoencoder, side: str) -> bool:
    """Whether any weight of one of `SIDES` takes gradients."""
    parameters = dict(vae.named_parameters())
    return any(parameters[name].requires_grad for name in _parameters_of(vae, side))


def _parameters_of(vae: VideoAutoencoder, part: str) -> list[str]:
    """Names of a part's parameters, the learned token among the decoder's."""
    names = [name for name, _ in vae.named_parameters()]
    if part in SIDES:
        return [name for name in names if _is_encoder(vae, name) == (part == "encoder")]
    if part not in dict(vae.named_modules()) or not part:
        raise ValueError(f"train_only={part}: no such part. Use {_known_parts(vae)}")
    if not (found := [name for name in names if name.startswith(f"{part}.")]):
        raise ValueError(f"train_only={part}: has no parameters. Use {_known_parts(vae)}")
    return found


def _known_parts(vae: VideoAutoencoder) -> str:
    depth = max(name.count(".") for name in vae.encoder_modules)
    modules = [
        name
        for name, module in vae.named_modules()
        if name and name.count(".") <= depth and next(module.parameters(), None) is not None
    ]
    return f"{', '.join(dict.fromkeys([*SIDES, *modules]))}, or a module in these"


def _is_encoder(vae: VideoAutoencoder, name: str) -> bool:
    """Whether a parameter or buffer belongs to the encoder's side."""
    return any(name.startswith(f"{module}.") for module in vae.encoder_modules)


def _reached(vae: VideoAutoencoder, size: Size) -> set[str]:
    """Names of the parameters that get gradients from a clip as long as those of `size`."""
    side = 2 * vae.config.spatial_ratio  # which parameters take part does not depend on it
    weight = next(vae.parameters())
    x = torch.zeros(1, 3, size[0], side, side, dtype=weight.dtype, device=weight.device)
    y, _ = vae(x, x.new_zeros(1, *vae.config.latent_shape(*x.shape[2:])))
    named = {name: p for name, p in vae.named_parameters() if p.requires_grad}
    if not y.requires_grad:
        return set()
    slopes = torch.autograd.grad(y.sum(), list(named.values()), allow_unused=True)
    return {name for name, slope in zip(named, slopes, strict=True) if slope is not None}


def _stop_dropout(vae: VideoAutoencoder) -> None:
    """Let a frozen encoder make the latents in training that it makes when they are cached."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Dropout) and _is_encoder(vae, f"{name}."):
            module.p = 0.0


def _side(vae: VideoAutoencoder, side: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vae.state_dict().items():
        if _is_encoder(vae, name) == (side == "encoder"):
            yield name, value


def _settings(vae: VideoAutoencoder) -> str:
    """The fields that the config changes; such as come later, at their defaults, change nothing."""
    changed = {
        field.name: value
        for field in fields(vae.config)
        if field.name != "dropout"  # of training alone
        and (field.default is MISSING or getattr(vae.config, field.name) != field.default)
        for value in [getattr(vae.config, field.name)]
    }
    return json.dumps(changed, sort_keys=True)


def _hash(weights: Iterable[tuple[str, Tensor]], settings: str = "") -> str:
    digest = hashlib.sha256(settings.encode())
    for name, value in sorted(weights, key=lambda item: item[0]):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
