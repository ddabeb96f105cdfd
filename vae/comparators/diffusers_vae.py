"""VAEs that diffusers ships, behind the same interface: one adapter for all rows of the table.

Weights and sizes come from the config.json and safetensors of diffusers' format. Where nothing else
is said, a video runs whole, without tiles.
"""

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from common.conv3d import SingleFrames
from common.posterior import LOGVAR_RANGE
from common.published_weights import COMPARATORS as PUBLISHED
from common.weights import read_state_dict
from vae.base import ResidualLayer
from vae.comparators import official
from vae.comparators.base import Comparator, ComparatorConfig
from vae.comparators.blocks import per_frame
from vae.comparators.diffusers_table import ROWS, Arguments, Row
from vae.config import VAEConfig

SCALING = ("latents_mean", "latents_std", "scaling_factor")
"""Arguments that only say how latents are scaled; `LatentConfig` holds that."""


@dataclass(frozen=True, kw_only=True)
class DiffusersConfig(ComparatorConfig):
    """Sizes of a VAE that diffusers builds; those of the published one where none are given."""

    model: str
    """Its row of the table."""
    z_dim: Annotated[int, Ge(0)] = 0
    """Latent channels; 0: as published."""
    arguments: dict[str, bool | int | float | str | list | None] = field(default_factory=dict)
    """What diffusers builds it from, besides z_dim and the scaling of latents."""

    def __post_init__(self) -> None:
        if self.model not in ROWS:
            raise ValueError(f"model={self.model!r}: use one of {', '.join(ROWS)}")
        object.__setattr__(self, "arguments", {**self.row.arguments, **self.arguments})
        object.__setattr__(self, "z_dim", self.z_dim or self.row.z_dim)
        super().__post_init__()
        if self.windows != "official" and self.row.native_window is None:
            raise ValueError(
                f"windows={self.windows}: the {PUBLISHED[self.model].name} has no "
                "windows to leave out"
            )

    @property
    def row(self) -> Row:
        """What this model differs in."""
        return ROWS[self.model]

    @property
    def temporal_ratio(self) -> int:
        return self.row.ratios(self.arguments)[0]

    @property
    def spatial_ratio(self) -> int:
        return self.row.ratios(self.arguments)[1]

    @property
    def frame_step(self) -> int:
        return self.row.frame_step or self.temporal_ratio

    @property
    def first_frames(self) -> int:
        return 1 if self.row.image_first else self.temporal_ratio


class DiffusersVAE(Comparator):
    """Adapter of the classes of diffusers, which builds and loads them; `ADAPTERS` has one of each.

    Wan's decoder clamps to [-1, 1].
    """

    config_class = DiffusersConfig
    config: DiffusersConfig
    encoder_modules = ("vae.encoder", "vae.quant_conv")
    model: ClassVar[str]
    """Its row of the table."""
    row: ClassVar[Row]
    vae: Any
    """The module of diffusers."""

    def __init__(self, config: DiffusersConfig):
        super().__init__(config)
        self.vae = self._class()(**config.arguments, **{self.row.z: config.z_dim})

    @classmethod
    def from_official(cls, source: str | Path, **options: Any) -> Self:
        cls._class()  # before anything is fetched
        name = "diffusion_pytorch_model.safetensors"
        path, given = official.find(source, (name, f"vae/{name}"), cls.published, **options)
        config_file = path.with_name("config.json")
        if not given:
            raise ValueError(
                f"{config_file}: no such file. Get it where the weights are from: "
                f"{cls.published.source}"
            )
        expected = {"_class_name": cls.row.class_name, **cls.row.flags}
        official.check_flags(config_file, given, expected)
        state = read_state_dict(path)
        model = cls(cls.config_from(given, state))
        official.load(model.vae, state, path, cls.title)
        return model.eval()

    @classmethod
    def config_from(cls, given: Arguments, state: Arguments) -> DiffusersConfig:
        """The config that diffusers' own stands for; `state` are the weights, of which some hold
        the scaling."""
        known = {
            name: _plain(parameter.default)
            for name, parameter in inspect.signature(cls._class()).parameters.items()
        }
        z_dim = given.get(cls.row.z, known[cls.row.z])
        names = {*cls.row.arguments, *(n for n in known if given.get(n, known[n]) != known[n])}
        names -= {cls.row.z, *SCALING}
        scaling = {name: given.get(name, known.get(name)) for name in SCALING} | {
            name: state[name].tolist() for name in SCALING if name in state
        }
        mean, std = _per_channel(scaling["latents_mean"], scaling["latents_std"], z_dim)
        return DiffusersConfig(
            model=cls.model,
            z_dim=z_dim,
            arguments={name: given.get(name, known[name]) for name in sorted(names)},
            latent_mean=mean,
            latent_std=tuple(value / (scaling["scaling_factor"] or 1) for value in std),
        )

    def moments(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        return self._moments(x, self.row.single)

    def frames(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b 3 t h w"]:
        return self._frames(z, self.row.single)

    def moments_in_windows(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        return self._moments(x, self.row.official)

    def frames_in_windows(
        self, z: Float[Tensor, "b z t h w"], count: int
    ) -> Float[Tensor, "b 3 t h w"]:
        return self._frames(z, self.row.official)

    def layers(self) -> list[ResidualLayer]:
        raise ValueError(
            f"the {self.title} is built by diffusers, from blocks that are not ours: leave out "
            "activation_checkpointing and compile"
        )

    def _moments(self, x: Tensor, attributes: Arguments) -> Tensor:
        self._set(attributes)
        if self.row.repeats_first:
            x = torch.cat([x[:, :, :1]] * (self.config.temporal_ratio - 1) + [x], dim=2)
        with SingleFrames():
            if self.row.untiled:
                return per_frame(self.vae.quant_conv, self.vae.encoder(x))
            moments = self.vae.encode(x).latent_dist.parameters
        self._forget()
        if self.row.has_variance:
            return moments
        return torch.cat([moments, torch.full_like(moments, LOGVAR_RANGE[0])], dim=1)

    def _frames(self, z: Tensor, attributes: Arguments) -> Tensor:
        self._set(attributes)
        with SingleFrames():
            if self.row.untiled:
                return self.vae.decoder(per_frame(self.vae.post_quant_conv, z))
            decoded = self.vae.decode(z)
        self._forget()
        return decoded if isinstance(decoded, Tensor) else decoded.sample

    def _set(self, attributes: Arguments) -> None:
        for name, value in attributes.items():
            setattr(self.vae, name, value)

    def _forget(self) -> None:
        """Drop what VidTok's layers keep for a next chunk: modules hold no activations."""
        for module in self.vae.modules():
            if hasattr(module, "causal_cache"):
                module.causal_cache = None

    @classmethod
    def _class(cls) -> type[nn.Module]:
        try:
            import diffusers
        except ImportError:
            raise ValueError(
                f"the {cls.title} needs diffusers: pip install 'ivvae[compare]'"
            ) from None
        with torch.device("cpu"):  # imported now, and a module may make constants of its own
            found = getattr(diffusers, cls.row.class_name, None)
        if found is None:
            raise ValueError(
                f"the {cls.title} needs a newer diffusers: {diffusers.__version__} has no "
                f"{cls.row.class_name}"
            )
        return found


def _adapter(model: str, row: Row) -> type[DiffusersVAE]:
    members = {
        "model": model,
        "row": row,
        "published": PUBLISHED[model],
        "title": PUBLISHED[model].name,
        "native_window": row.native_window,
        "last_module": f"vae.decoder.{row.last}",
    }
    return type(row.export, (DiffusersVAE,), members)


ADAPTERS: dict[str, type[DiffusersVAE]] = {name: _adapter(name, row) for name, row in ROWS.items()}
"""The models by name."""


def small_config(name: str, like: VAEConfig) -> DiffusersConfig:
    """A config as much smaller than the published one as `like` is than the released IV-VAE."""
    row, usual = ROWS[name], VAEConfig()

    def each(value: Any, change: Callable[[int], int]) -> Any:
        return [change(one) for one in value] if isinstance(value, list) else change(value)

    def narrowed(width: int) -> int:
        return -(-max(1, width * like.dim // usual.dim) // row.multiple) * row.multiple

    def shortened(count: int) -> int:
        return max(1, count + like.num_blocks - usual.num_blocks)

    changes = {key: each(row.arguments[key], narrowed) for key in row.widths}
    changes |= {key: each(row.arguments[key], shortened) for key in row.blocks}
    if row.groups is not None:
        widths = [width for key in row.widths for width in changes[key]]
        changes[row.groups] = math.gcd(narrowed(row.arguments[row.groups]), *widths)
    return DiffusersConfig(model=name, z_dim=like.z_dim, arguments=changes)


def _per_channel(
    mean: list[float] | None, std: list[float] | None, z_dim: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel; those of Cosmos, per latent frame, over all of them."""
    if not mean or not std or len(mean) % z_dim or len(mean) != len(std):
        return (0.0,), (1.0,)
    means, stds = (torch.tensor(v, dtype=torch.float64).view(z_dim, -1) for v in (mean, std))
    whole = (stds.square().mean(1) + means.var(1, correction=0)).sqrt()
    return tuple(means.mean(1).tolist()), tuple(whole.tolist())


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return None if value is inspect.Parameter.empty else json.loads(json.dumps(value))
