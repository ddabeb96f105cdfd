"""VAEs that diffusers ships, behind the same interface: `CogVideoX` and `Wan`."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor, nn

from vae.comparators import official
from vae.comparators.base import Comparator, ComparatorConfig


class DiffusersVAE(Comparator):
    """Adapter of one diffusers class, which is built and loaded by diffusers."""

    last_module = "vae.decoder.conv_out"
    class_name: ClassVar[str]
    """The class in diffusers."""
    example: ClassVar[str]
    """A hub id that has it."""
    vae: Any
    """The module of diffusers."""
    flags: ClassVar[Mapping[str, Any]]
    """What its config.json says of the version that this is."""

    def __init__(self, config: ComparatorConfig):
        super().__init__(config)
        self.vae = self._class()(**self.arguments(config))

    @classmethod
    @abstractmethod
    def arguments(cls, config: Any) -> dict[str, Any]:
        """What diffusers builds it from."""

    @classmethod
    @abstractmethod
    def config_from(cls, given: Mapping[str, Any]) -> ComparatorConfig:
        """The config that diffusers' own stands for."""

    @classmethod
    def from_official(cls, source: str | Path, **options: Any) -> Self:
        cls._class()  # before anything is fetched
        name = "diffusion_pytorch_model.safetensors"
        home = f"https://huggingface.co/{cls.example}, folder vae,"
        files = f"config.json and {name} of {home}"
        path, given = official.find(source, (name, f"vae/{name}"), files=files, **options)
        beside = path.with_name("config.json")
        if not given:
            raise ValueError(f"{beside}: no such file. Get that of {home} too")
        official.check_flags(beside, given, {"_class_name": cls.class_name, **cls.flags})
        model = cls(cls.config_from(given))
        official.load(model.vae, official.read(path), path, cls.title)
        return model.eval()

    def moments(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        return self.vae.encode(x).latent_dist.parameters

    def frames(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b 3 t h w"]:
        return self.vae.decode(z).sample

    def layers(self) -> list[nn.Module]:
        raise ValueError(
            f"the {self.title} is built by diffusers, from blocks that are not ours: leave out "
            "activation_checkpointing and compile"
        )

    @classmethod
    def _class(cls) -> type[nn.Module]:
        try:
            import diffusers
        except ImportError:
            raise ValueError(
                f"the {cls.title} needs diffusers: pip install 'ivvae[compare]'"
            ) from None
        return getattr(diffusers, cls.class_name)
