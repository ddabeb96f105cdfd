"""Public Latte checkpoints: theirs to ours and back, exactly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from einops import rearrange
from torch import Tensor

from common.published_weights import LATTE
from common.weights import check_state, find_weights, read_state_dict
from latte.config import LatteConfig
from latte.model import Latte

_TABLES = ("pos_embed", "temp_embed")


def from_released(
    checkpoint: Mapping[str, Any], config: LatteConfig, *, which: Literal["ema", "model"] = "ema"
) -> Latte:
    """Build a model from a public checkpoint, in eval mode.

    Args:
        checkpoint: A state dict, or what a public file holds: {"model": ..., "ema": ...}. Read
            files with `common.weights.read_state_dict`.
        config: Of the checkpoint; sizes are checked against it.
        which: The weights to take from a file that holds both.

    Raises:
        ValueError: another variant than 1; weights or keys missing, unexpected or of another
            shape; position tables, which public files keep among the weights, unlike ours.
    """
    if config.variant != 1:
        raise ValueError(f"Latte checkpoint: variant={config.variant}, but public ones are of 1.")
    state = _choose(checkpoint, which)
    model = Latte(config)
    tables = _position_tables(model)
    check_state(state, tables | model.state_dict(), "Latte checkpoint: does not fit the config")
    for key, table in tables.items():
        difference = float((state[key].float() - table).abs().max())
        if difference > 1e-5:
            raise ValueError(
                f"Latte checkpoint: {key} differs from the sine-cosine table by up to "
                f"{difference:.3g}. It is from another kind of model."
            )
    model.load_state_dict({key: value for key, value in state.items() if key not in _TABLES})
    return model.eval()


def load_released(name: str, config: LatteConfig, path: str | Path | None = None) -> Latte:
    """A public model of `common.published_weights.LATTE`, from where `find_weights` looks.

    Args:
        name: such as `ucf101`.
        config: of the checkpoint, as in `from_released`.
        path: the file; None looks where all weights files are looked for.

    Raises:
        ValueError: unknown name, no file (says what to put where), or one that does not fit.
    """
    if name not in LATTE:
        raise ValueError(f"name={name!r}: use one of {', '.join(LATTE)}")
    return from_released(read_state_dict(find_weights(LATTE[name], path).path), config)


def to_released(model: Latte) -> dict[str, Tensor]:
    """The state dict of `model` under the public key names, position tables included; copies."""
    released = _position_tables(model) | model.state_dict()
    return {key: value.detach().clone() for key, value in released.items()}


def _position_tables(model: Latte) -> dict[str, Tensor]:
    return {
        "pos_embed": rearrange(model.pos_embed, "n d -> 1 n d"),
        "temp_embed": rearrange(model.temp_embed, "t 1 d -> 1 t d"),
    }


def _choose(checkpoint: Mapping[str, Any], which: str) -> Mapping[str, Tensor]:
    if isinstance(checkpoint.get(which), Mapping):
        return checkpoint[which]
    held = [key for key, value in checkpoint.items() if isinstance(value, Mapping)]
    if held:
        raise ValueError(
            f"Latte checkpoint: no {which!r} weights; it holds {', '.join(held)}. Choose another."
        )
    return checkpoint
