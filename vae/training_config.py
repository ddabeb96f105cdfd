"""What is trained of a VAE, from what and with which losses; how long and on what is not here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from common.config import MAY_CHANGE, Config
from common.perceptual import check_size
from engine.config import TrainConfig
from vae.adversarial import AdversarialConfig
from vae.comparators.base import ComparatorConfig
from vae.config import Size, VAEConfig
from vae.losses import VAELossConfig
from vae.registry import OTHERS, architecture_config
from vae.regularizers import RegularizerConfig


@dataclass(frozen=True, kw_only=True)
class VAETraining(Config):
    """The model of a stage, what it starts from, its losses, and what saves memory or time."""

    model: VAEConfig = field(default_factory=VAEConfig)
    """The video VAE. The image stage trains the image VAE that it is inflated from."""
    architecture: str = "ivvae"
    """Row of the paper's ablation, a preset of VAEConfig, which changes `model`; a width relative
    to the released model's is kept relative. Or another VAE to train in its place: cv_vae, od_vae,
    od_vae_gcconv, opensora_v12, cogvideox, wan, ... (docs/reproduce.md), with z_dim and num_blocks
    of `model`, as much narrower than the published one as `model` is than the released IV-VAE."""
    stage: Literal["image", "video"] = "video"
    """image: one branch, on single frames; video: the whole model."""
    init_from: str | None = None
    """Folder or hub id of weights to start from: an image VAE is inflated (Eq. 3 and 4 of the
    supplement), a video VAE continued. Default: random weights."""
    train_only: list[str] = field(default_factory=list)
    """Parts to train while all others keep their bits: encoder, decoder, or modules by name, such
    as decoder.head. With the decoder alone, latents and what is trained on them stay valid.
    Default: all."""
    loss: VAELossConfig = field(default_factory=VAELossConfig)
    """Weights of Eq. 5."""
    adversarial: AdversarialConfig | None = None
    """The GAN term of Eq. 5 and its discriminator; null: none."""
    regularizers: RegularizerConfig = field(default_factory=RegularizerConfig)
    """Terms for latents that are easier to generate, all off by default."""
    activation_checkpointing: Annotated[bool, MAY_CHANGE] = False
    """Recompute activations in the backward pass: much less memory, about a third more time."""
    compile: Annotated[bool | None, MAY_CHANGE] = None
    """Compile residual and attention blocks with torch.compile. Default: on CUDA, without FSDP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.video_config  # refuses an unknown architecture
        if self.architecture in OTHERS and self.stage == "image":
            raise ValueError(
                f"architecture={self.architecture}: has no image stage, as nothing is "
                "inflated into it: set stage: video, and init_from: null or weights of its own kind"
            )
        if self.train_only and self.init_from is None:
            raise ValueError(
                f"train_only={', '.join(self.train_only)}: the other parts would stay random: set "
                "init_from"
            )

    def check(self, train: TrainConfig, sizes: Sequence[Size], scored: Sequence[Size]) -> None:
        """Refuse (`ValueError`) what cannot be trained on clips of `sizes` (frames, height, width).

        Args:
            train: length and precision of the run.
            scored: sizes of clips that are only reconstructed.
        """
        for frames, height, width in [*sizes, *scored]:
            if self.stage == "image" and frames != 1:
                raise ValueError(
                    f"stage=image trains on single frames: set data.frames=1, got {frames}"
                )
            self.vae_config.latent_shape(frames, height, width)
            if self.loss.perceptual != "none":
                check_size(self.loss.perceptual, height, width)
        reconstructed = []
        for size in sizes:
            main, least = self.regularizers.check(self.vae_config, size)
            reconstructed.append(main)
            if self.loss.perceptual != "none":
                check_size(self.loss.perceptual, *least[1:])
        if self.adversarial is not None:
            self.adversarial.check(train, reconstructed)

    def fixed_fields(self) -> frozenset[str]:
        """The course of the discriminator's cosine schedule depends on the run's steps, too."""
        gan = self.adversarial
        cosine = gan is not None and gan.optimizer.schedule == "cosine"
        return frozenset({"train.steps"} if cosine else ())

    @property
    def video_config(self) -> VAEConfig | ComparatorConfig:
        """The video VAE: `model` as the row changes it, or a comparator of its size."""
        return architecture_config(self.architecture, self.model)

    @property
    def vae_config(self) -> VAEConfig | ComparatorConfig:
        """Of the model that is trained."""
        config = self.video_config
        if self.stage == "image" and isinstance(config, VAEConfig):
            return config.image()
        return config

    @property
    def name(self) -> str:
        """What is trained, for names of folders: ivvae_z16."""
        return f"{self.architecture}_z{self.model.z_dim}"
