"""The authors' released checkpoints: file names, configs, and the latent scale that goes with them.

The scale and shift of the latents are not in the files: z is used as (z - shift) * scale. So
`latent_mean` is the shift and `latent_std` is 1 / scale.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from common.published_weights import IVVAE
from common.weights import find_weights, read_state_dict
from vae.config import VAEConfig

SCALE_AND_SHIFT = {
    (4, 64): (1.3196, 0.1250),
    (8, 64): (1.0940, -0.0322),
    (16, 64): (0.9697, -0.1553),
    (16, 96): (0.7619, -0.0483),
}
"""Of the latents, by z_dim and dim."""

_DIM_KEY = "encoder.conv1.conv_2d.weight"  # dim 3 3 3
_Z_KEY = "conv2.conv_2d.weight"  # z/2 z 1 1


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a released file, or in one of `IVVAE` where `find_weights` looks.

    Code in the file is never run (`weights_only=True`).

    Raises:
        ValueError: no such file, not a file of weights, or not one tensor per name.
    """
    path = Path(path)
    if not path.exists() and path.name == str(path) and path.stem in IVVAE:
        path = find_weights(IVVAE[path.stem]).path
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file. Get one of {', '.join(each.file for each in IVVAE.values())} "
            "from the IV-VAE authors and give its path"
        )
    state = read_state_dict(path)
    if not state:
        raise ValueError(f"{path}: holds no weights")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: {name!r} is a {type(value).__name__}, not a tensor; a released file "
                "holds tensors by name"
            )
    return state


def released_config(state: Mapping[str, Tensor]) -> VAEConfig:
    """The config of a released state dict, read off its shapes; with the scale if it is known.

    Raises:
        ValueError: the tensors that tell z_dim and dim are missing or have other shapes.
    """
    dim, z_dim = _size(state, _DIM_KEY, axis=0, ndim=4), _size(state, _Z_KEY, axis=1, ndim=4)
    scale, shift = SCALE_AND_SHIFT.get((z_dim, dim), (1.0, 0.0))
    return VAEConfig(z_dim=z_dim, dim=dim, latent_mean=(shift,), latent_std=(1 / scale,))


def is_released_architecture(config: VAEConfig) -> bool:
    """Whether a model is what the released files can hold; z_dim and dim are free."""
    plain = VAEConfig(z_dim=config.z_dim, dim=config.dim, dropout=config.dropout)
    return plain == replace(config, latent_mean=plain.latent_mean, latent_std=plain.latent_std)


def _size(state: Mapping[str, Tensor], key: str, *, axis: int, ndim: int) -> int:
    if key not in state:
        raise ValueError(f"not a released IV-VAE: it has no {key}")
    if state[key].ndim != ndim:
        raise ValueError(f"not a released IV-VAE: {key} has shape {tuple(state[key].shape)}")
    return state[key].shape[axis]
