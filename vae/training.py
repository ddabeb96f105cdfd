"""How a stage of training begins, and the loss of its steps."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.config import differences
from common.pixels import to_float
from common.pretrained import saved_class
from common.seeding import fold, noise
from engine.compilation import compile_layers, compiles
from engine.config import TrainConfig
from engine.losses import Batch, Losses, StepInfo
from vae.adversarial import AdversarialLoss
from vae.base import VideoAutoencoder
from vae.checkpointing import enable_activation_checkpointing
from vae.comparators.base import ComparatorConfig
from vae.comparators.training import initial_comparator
from vae.config import Size, VAEConfig
from vae.discriminator import Discriminator
from vae.image_vae import ImageVAE
from vae.inflate import inflate
from vae.losses import VAELoss
from vae.model import VideoVAE
from vae.parts import freeze_others, trains
from vae.posterior import DiagonalGaussian
from vae.regularizers import RegularizerConfig, Regularizers
from vae.training_config import VAETraining

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VAETrainingLoss:
    """The loss function of a run, for `engine.train.Trainer`; the batch brings what it draws."""

    loss: VAELoss
    """Eq. 5 without its adversarial term."""
    model: VideoAutoencoder
    """That is trained, not wrapped."""
    accelerator: Accelerator
    gan: AdversarialLoss | None = None
    """The adversarial term."""
    regularizers: Regularizers | None = None
    """The terms beside Eq. 5."""

    def draw(self, batch: Batch, seed: int, step: int, positions: range) -> Batch:
        """Noise of the posterior, for each clip by its place in the global batch."""
        shape = self.model.config.latent_shape(*batch["video"].shape[2:])
        return {"noise": noise(shape, seed, "posterior", step, positions)}

    def __call__(self, module: nn.Module, batch: Batch, info: StepInfo) -> Losses:
        """Eq. 5 of reconstructions of `video` (`b 3 t h w`) from a sample of the posterior."""
        video = to_float(batch["video"])
        if self.regularizers is None:
            with self.accelerator.autocast():
                reconstruction, posterior = module(video, batch["noise"])
            return self._eq_5(reconstruction, video, posterior, info, video)
        edits = self.regularizers.edits(video.shape[2:], info)
        with self.accelerator.autocast():
            reconstructions, posterior = module(video, batch["noise"], edits)
        videos = edits.videos(video)
        values, outputs = self._eq_5(reconstructions[0], videos[0], posterior, info, video)
        terms = self.regularizers.terms(self.loss, reconstructions, videos, posterior)
        return Losses({**values, **terms, "loss": values["loss"] + terms["loss"]}, outputs)

    def _eq_5(
        self,
        reconstruction: Tensor,
        video: Tensor,
        posterior: DiagonalGaussian,
        info: StepInfo,
        encoded: Tensor,
    ) -> Losses:
        if self.gan is None:
            return Losses(self.loss(reconstruction, video, posterior, encoded=encoded))
        # asked for now: with FSDP a layer has its weights only after the forward pass
        last_layer = self.model.last_layer()
        return self.gan.generator_loss(
            reconstruction, posterior, video, info, last_layer, encoded=encoded
        )


def initial_losses(
    config: VAETraining, train: TrainConfig, accelerator: Accelerator, sizes: Sequence[Size]
) -> VAETrainingLoss:
    """The loss function of a run, with the model that its stage begins with.

    Args:
        train: seed and precision of the run.
        sizes: frames, height and width of its clips.
    Raises:
        ValueError: weights are not there or do not fit, a part cannot be trained, or a term of the
            loss needs one that is frozen.
    """
    loss = VAELoss(config.loss, lpips_bf16=train.precision == "bf16").to(accelerator.device)
    torch.manual_seed(fold(train.seed, "weights"))
    image = config.stage == "image"
    model = initial_model(config.video_config, image=image, source=config.init_from)
    gan = None
    if config.adversarial is not None:
        torch.manual_seed(fold(train.seed, "discriminator"))
        discriminator = Discriminator(config.adversarial.discriminator)
        log.info("discriminator: all weights are new")
        gan = AdversarialLoss(config.adversarial, loss, discriminator, accelerator)
    regularizers = None
    if config.regularizers != RegularizerConfig():
        regularizers = Regularizers(config.regularizers, model)
    if config.train_only:
        freeze_others(model, config.train_only, max(sizes))
        if config.regularizers.local_correlation is not None and not trains(model, "encoder"):
            raise ValueError(
                "regularizers.local_correlation moves the encoder alone, which train_only leaves "
                "frozen: leave the term out, or train the encoder"
            )
        last_frozen = not all(parameter.requires_grad for parameter in model.last_layer())
        if gan is not None and gan.config.weighting == "adaptive" and last_frozen:
            raise ValueError(
                "adversarial.weighting=adaptive compares gradients at the decoder's last layer, "
                "which train_only leaves frozen: set weighting to fixed, or train "
                f"{model.last_module} too"
            )
    return VAETrainingLoss(loss, model, accelerator, gan, regularizers)


def initial_model(
    config: VAEConfig | ComparatorConfig, *, image: bool, source: str | None
) -> VideoAutoencoder:
    """The model that a stage begins with; logs what was loaded and what is new.

    Args:
        config: of the video VAE; the image stage trains the image VAE that it is inflated from. A
            comparator has no image stage.
        image: whether this is the image stage.
        source: folder or hub id of an earlier stage's weights; None: random weights.
    Raises:
        ValueError: the weights are not there or do not fit; says what differs.
    """
    if isinstance(config, ComparatorConfig):
        return initial_comparator(config, source)
    kind = "image VAE" if image else "video VAE"
    wanted = config.image() if image else config
    if source is None:
        log.info("%s: all weights are new", kind)
        return ImageVAE(wanted) if image else VideoVAE(wanted)
    if not image and saved_class(source) == ImageVAE.__name__:
        loaded = ImageVAE.from_pretrained(source)
        _check(source, loaded.config, config.image())
        model = inflate(loaded, config)
        log.info("video VAE: inflated from the image VAE %s (%s)", source, _parameters(loaded))
        log.info(
            "video VAE: new are the blocks across branches and in time, at their neutral value"
        )
        return model
    model = (ImageVAE if image else VideoVAE).from_pretrained(source)
    _check(source, model.config, wanted)
    log.info("%s: all weights are from %s (%s)", kind, source, _parameters(model))
    return model


def prepare(model: nn.Module, config: VAETraining, accelerator: Accelerator) -> None:
    """Turn on what saves memory or time in training: activation checkpointing, and compilation of
    residual and attention blocks. Weights and their names stay.
    """
    assert isinstance(model, VideoAutoencoder)
    if config.activation_checkpointing:
        enable_activation_checkpointing(model)
    if compiles(config.compile, accelerator):
        compile_layers(model.layers())


def _check(source: str, found: VAEConfig, wanted: VAEConfig) -> None:
    if changes := differences(asdict(found), asdict(wanted)):
        raise ValueError(
            f"{source}: these start weights do not fit the model: {'; '.join(changes)}. "
            "Name the export of the stage before, or change the model."
        )


def _parameters(model: VideoVAE) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"
