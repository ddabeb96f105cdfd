"""Checkpoints of others to our model, those of the authors back too, exactly.

The authors' released files hold one tensor per branch where ours runs both branches in one layer
(1x1 KTC convolutions, resampling, attention); the rest is names. The Wan VAE, as diffusers has it,
is the paper's baseline under other names.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from common.weights import refuse_state
from vae.config import VAEConfig
from vae.convs import lay_out_weights
from vae.model import VideoVAE

_PAC = ("PAC_0", "PAC_1", "PAC_3", "PAC_6", "PAC_9", "PAC_12")

# Ours -> released, applied in order. "{}" stands for the branch, "2d" and then "3d".
_RENAMES = [
    (r"\.gain$", ".gamma"),
    (r"^to_moments\.", "conv1.conv_{}."),
    (r"^from_latent\.", "conv2.conv_{}."),
    (r"^encoder\.layers\.", "encoder.downsamples."),
    (r"^decoder\.layers\.", "decoder.upsamples."),
    (r"(samples|middle)\.(\d+)\.(norm|to_qkv|to_out)\.", r"\1.\2.Attention_{}.\3."),
    (r"\.to_out\.", ".proj."),
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.shortcut\.", ".shortcut.conv_{}."),
    (r"\.spatial\.", ".resample_{}.1."),
    (r"\.temporal\.", ".time_conv."),
    (r"^encoder\.head\.fuse\.", "encoder.head.2.PAC_conv.conv."),
    (r"^encoder\.head\.convs\.(\d)\.", lambda m: f"encoder.head.2.{_PAC[int(m[1])]}.conv."),
    (r"^decoder\.head\.", "decoder.head.2."),
    (r"\.norm_out\.", ".head.0."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
    (r"\.keyframe\.", ".conv_2d."),
    (r"\.motion\.", ".conv_3d."),
    (r"(residual\.[26]|decoder\.conv1)\.(weight|bias)$", r"\1.conv.\2"),
]


# Ours -> AutoencoderKLWan of diffusers.
_WAN_RENAMES = [
    (r"\.gain$", ".gamma"),
    (r"^to_moments\.", "quant_conv."),
    (r"^from_latent\.", "post_quant_conv."),
    (r"^encoder\.layers\.", "encoder.down_blocks."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.to_out\.", ".proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.spatial\.", ".resample.1."),
    (r"\.temporal\.", ".time_conv."),
    (r"^(encoder|decoder)\.head\.", r"\1.conv_out."),
]


def from_released(state_dict: Mapping[str, Tensor], config: VAEConfig) -> VideoVAE:
    """Our model with the weights of a released IV-VAE checkpoint.

    Args:
        state_dict: released names, e.g. `encoder.conv1.conv_2d.weight`.
        config: must describe that checkpoint (z_dim, dim).
    Raises:
        ValueError: missing, unexpected or misshapen tensors, each named.
    """
    return _load(state_dict, config, _released_names, "a released IV-VAE")


def to_released(model: VideoVAE) -> dict[str, Tensor]:
    """The model's weights under the names and shapes of the released checkpoints."""
    theirs = {}
    for key, value in model.state_dict().items():
        names = _released_names(key, model.config)
        for name, part in zip(names, value.chunk(len(names)), strict=True):
            theirs[name] = part.reshape(_released_shape(name, part)).clone()
    return theirs


def from_wan(state_dict: Mapping[str, Tensor], config: VAEConfig) -> VideoVAE:
    """Our baseline with the weights of a Wan VAE (`AutoencoderKLWan` of diffusers).

    Args:
        state_dict: names of diffusers, e.g. `encoder.down_blocks.0.conv1.weight`.
        config: must describe that checkpoint, e.g. `VAEConfig.preset("baseline")` for Wan 2.1.
    Raises:
        ValueError: missing, unexpected or misshapen tensors, each named.
    """
    return _load(state_dict, config, _wan_names, "a Wan VAE")


def _load(
    state_dict: Mapping[str, Tensor],
    config: VAEConfig,
    names_of: Callable[[str, VAEConfig], list[str]],
    kind: str,
) -> VideoVAE:
    with torch.device("meta"):
        model = VideoVAE(config)
    ours, problems, used = {}, [], set()
    for key, parameter in model.state_dict().items():
        names = names_of(key, config)
        used.update(names)
        if missing := [name for name in names if name not in state_dict]:
            problems += [f"missing {name}" for name in missing]
            continue
        parts = [state_dict[name] for name in names]
        share = (parameter.shape[0] // len(parts), *parameter.shape[1:])
        if any(_squeezed(part.shape) != _squeezed(share) for part in parts):
            shapes = [tuple(part.shape) for part in parts]
            problems.append(
                f"{', '.join(names)} of shape {shapes} where {tuple(parameter.shape)} is needed"
            )
            continue
        ours[key] = torch.cat([part.reshape(share) for part in parts])
    problems += [f"unexpected {name}" for name in state_dict if name not in used]
    refuse_state(problems, f"not {kind} with z_dim={config.z_dim}, dim={config.dim}")
    model.load_state_dict(ours, assign=True)
    lay_out_weights(model)
    return model


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of length 1, which others put where they like."""
    return tuple(size for size in shape if size != 1)


def _released_names(key: str, config: VAEConfig) -> list[str]:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return [key.format(branch) for branch in ("2d", "3d")] if "{}" in key else [key]


def _released_shape(name: str, value: Tensor) -> tuple[int, ...]:
    if name.endswith("norm.gamma"):
        return (*value.shape, 1, 1)
    if name.endswith("gamma"):
        return (*value.shape, 1, 1, 1)
    if name.endswith("conv_3d.weight") and value.ndim == 4:  # kernel 1
        return (*value.shape[:2], 1, 1, 1)
    return tuple(value.shape)


def _wan_names(key: str, config: VAEConfig) -> list[str]:
    def block(match: re.Match[str]) -> str:
        level, i = divmod(int(match[1]), config.num_blocks + 2)
        part = "upsamplers.0" if i > config.num_blocks else f"resnets.{i}"
        return f"decoder.up_blocks.{level}.{part}."

    key = re.sub(r"^decoder\.layers\.(\d+)\.", block, key)
    for pattern, replacement in _WAN_RENAMES:
        key = re.sub(pattern, replacement, key)
    return [key]
