"""Turn the authors' released IV-VAE checkpoints into folders for from_pretrained, and back."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Gt

from common.cli import main
from common.config import Config
from common.files import atomic_folder, atomic_path
from common.output_folder import check_one_process
from vae import VideoVAE, weights_hash
from vae.convert import from_released, to_released
from vae.released import is_released_architecture, read_checkpoint, released_config


@dataclass(frozen=True, kw_only=True)
class ConvertCheckpoint(Config):
    """Convert a released IV-VAE checkpoint (.pth) to a from_pretrained folder, or a folder back."""

    source: str
    """Released file such as ivvae_z16_dim64.pth, or a folder or hub id of a VideoVAE."""
    out: str
    """Folder, or released file, to write."""
    to: Literal["pretrained", "released"] | None = None
    """Direction; default: a file becomes a folder (pretrained) and anything else a file
    (released)."""
    latent_mean: float | None = None
    """Mean of the latents, kept in config.json; default: the released shift, 0 where the
    checkpoint's size is not a released one."""
    latent_std: Annotated[float, Gt(0)] | None = None
    """Standard deviation of the latents; default: 1 / the released scale, else 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.latent_mean, self.latent_std) != (None, None)
        if self.direction == "released" and given:
            raise ValueError(
                "latent_mean and latent_std are not part of a released file: leave them out"
            )

    @property
    def direction(self) -> Literal["pretrained", "released"]:
        """What is written."""
        looks_released = Path(self.source).is_file() or Path(self.source).suffix == ".pth"
        return self.to or ("pretrained" if looks_released else "released")


def run(config: ConvertCheckpoint) -> str:
    """Convert; returns what was done. An `out` that already holds the same is left as it is.

    Raises:
        ValueError: source is not what it should be, `out` holds something else, or several
            processes were launched.
    """
    check_one_process()
    return _to_folder(config) if config.direction == "pretrained" else _to_file(config)


def _to_folder(config: ConvertCheckpoint) -> str:
    state, out = read_checkpoint(config.source), Path(config.out)
    given = {"latent_mean": config.latent_mean, "latent_std": config.latent_std}
    given = {name: (value,) for name, value in given.items() if value is not None}
    try:
        vae = replace(released_config(state), **given)
        model = from_released(state, vae)
    except ValueError as error:
        raise ValueError(f"{config.source}: {error}") from None
    if out.exists():
        there = VideoVAE.from_pretrained(out) if (out / "config.json").is_file() else None
        if there is None or there.config != vae or weights_hash(there) != weights_hash(model):
            raise _taken(out)
        return f"{out} already holds this model"
    with atomic_folder(out) as temporary:
        model.save_pretrained(temporary)
    statistics = f"latent_mean {vae.latent_mean[0]:g}, latent_std {vae.latent_std[0]:g}"
    return f"{out}: VideoVAE, z_dim {vae.z_dim}, dim {vae.dim}, {statistics}"


def _to_file(config: ConvertCheckpoint) -> str:
    model, out = VideoVAE.from_pretrained(config.source), Path(config.out)
    if not is_released_architecture(model.config):
        raise ValueError(
            f"{config.source}: {model.config} is not the architecture of the released files, which "
            "differ in z_dim and dim only"
        )
    state = to_released(model)
    if out.exists():
        there = read_checkpoint(out) if out.is_file() else {}
        if there.keys() != state.keys() or any(
            not torch.equal(there[name], value) for name, value in state.items()
        ):
            raise _taken(out)
        return f"{out} already holds these weights"
    with atomic_path(out) as temporary:
        torch.save(state, temporary)
    vae = model.config
    return (
        f"{out}: {len(state)} tensors. The file does not hold the latents' mean {vae.latent_mean} "
        f"and std {vae.latent_std}: note shift = mean and scale = 1 / std"
    )


def _taken(out: Path) -> ValueError:
    return ValueError(f"{out}: holds something else. Choose another place or remove it first")


if __name__ == "__main__":
    main(ConvertCheckpoint, lambda config: print(run(config)))
