"""What is trained of Latte and how it learns; how long and on what is not here."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le

from common.config import MAY_CHANGE, Config
from latte.config import LatteOptions
from latte.diffusion import DiffusionConfig
from latte.diffusion_process import make_process
from latte.flow import FlowConfig
from latte.samplers import SamplerConfig


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Config):
    """Images of joint training."""

    latents: str
    """Folder of their latent cache, made with frames=1 by the same VAE."""
    per_step: Annotated[int, Ge(1)]
    """Images per step over all processes, spread evenly over the clips."""


@dataclass(frozen=True, kw_only=True)
class LatteTraining(Config):
    """The transformer, what it starts from and learns, its previews, what saves memory or time."""

    model: LatteOptions = field(default_factory=LatteOptions)
    """The transformer."""
    images: ImageOptions | None = None
    """Images trained on together with the clips; null: none."""
    init_from: str | None = None
    """Folder or hub id of a Latte of the same size to start from. Default: new weights."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Noise schedule and objective."""
    flow: FlowConfig | None = None
    """Rectified flow in place of diffusion; null: diffusion."""
    vae: str | None = None
    """The VAE that made the latents: decodes samples at every checkpoint. Default: no samples."""
    preview_sampler: SamplerConfig | None = None
    """How those samples are drawn. Default: 20 steps of DDIM, in a flow of Heun."""
    num_previews: Annotated[int, Ge(1), Le(1000), MAY_CHANGE] = 4
    """Their number."""
    activation_checkpointing: Annotated[bool, MAY_CHANGE] = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""
    compile: Annotated[bool | None, MAY_CHANGE] = None
    """Compile the blocks with torch.compile. Default: on CUDA, without FSDP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_process(self.diffusion, self.flow)

    @property
    def sampler(self) -> SamplerConfig:
        """How previews are drawn."""
        method = "ddim" if self.flow is None else "heun"
        return self.preview_sampler or SamplerConfig(method=method, steps=20)

    @property
    def name(self) -> str:
        """The model's size and patch, for names of folders: xl2."""
        return f"{self.model.size.lower()}{self.model.patch_size}"
