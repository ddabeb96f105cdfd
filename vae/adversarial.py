"""The adversarial term of Eq. 5: hinge losses, the weight of the term, its start and warm-up."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.autograd import grad

from common.config import Config
from engine.config import OptimizerConfig, TrainConfig
from engine.losses import Losses, StepInfo
from engine.optimization import DiscriminatorTraining
from vae.discriminator import Discriminator, DiscriminatorConfig
from vae.losses import REFERENCE_VALUES, VAELoss, wide
from vae.posterior import DiagonalGaussian

TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(Config):
    """The GAN term of Eq. 5: when it starts, how much it counts, and the discriminator."""

    start_step: Annotated[int, Ge(0)] = 0
    """Finished steps after which the discriminator is trained and used."""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps from there over which the term's weight rises linearly, so that the discriminator
    learns before it teaches."""
    weight: Annotated[float, Ge(0)] = 0.8
    """Weight of the term (beta)."""
    weighting: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: the weight is multiplied by the ratio of the gradient norms of the reconstruction
    terms and of this term at the decoder's last layer; fixed: by 1."""
    max_ratio: Annotated[float, Gt(0)] = 1e4
    """Largest such ratio."""
    smoothing: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Share of the old norms in the running means that the ratio is made of; 0: the last step's."""
    r1_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the R1 penalty, half the squared gradient of the mean logit per real clip; 0: none.
    """
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Its size."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(betas=(0.5, 0.9)))
    """Its learning rate, counted from start_step, and clipping."""

    def check(self, train: TrainConfig, sizes: Sequence[tuple[int, int, int]]) -> None:
        """Refuse (`ValueError`) a run that is too short or whose clips, of these frames, heights
        and widths, are too small for the discriminator, or one in fp16."""
        for _, height, width in sizes:
            self.discriminator.check(height, width)
        if self.start_step >= train.steps:
            raise ValueError(
                f"adversarial.start_step={self.start_step} is not before the end of the run at "
                f"train.steps={train.steps}"
            )
        if train.precision == "fp16":
            raise ValueError(
                "precision=fp16 is not supported with a GAN (one loss scale, two losses): use bf16"
            )

    def ramp_at(self, step: int) -> float:
        """Share of the weight that counts after `step` finished steps, in [0, 1]."""
        if step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step) / self.warmup_steps) if self.warmup_steps else 1.0


class AdversarialLoss:
    """Eq. 5 with its GAN term, and the discriminator's own loss.

    The adaptive ratio is |d reconstruction / d last layer| / |d GAN / d last layer| (Esser et al.
    2021), of the gradients of a whole global batch: they are summed over micro-batches and
    processes before their norms are taken. A step uses the norms of the steps before it. So the
    weight does not depend on how the batch is shared out, and no forward pass is repeated. The
    first step of the term only measures.

    Both terms are differentiated once, down to the reconstruction; from there their gradients go
    on through the decoder, to the last layer each and further as one. The perceptual network and
    the discriminator are passed once per direction.
    """

    def __init__(
        self,
        config: AdversarialConfig,
        loss: VAELoss,
        discriminator: Discriminator,
        accelerator: Accelerator,
    ):
        """`discriminator`: the module that `training` trains, on the CPU."""
        self.config = config
        self.loss = loss
        self.discriminator = discriminator
        self.accelerator = accelerator
        # running means: reconstruction, GAN; NaN before the first. Read on the device alone
        self._norms = torch.full((2,), math.nan, dtype=torch.float64, device=accelerator.device)
        self._sums: list[Tensor] | None = None  # gradients of this step's micro-batches so far

    @property
    def training(self) -> DiscriminatorTraining:
        """How the trainer is to train the discriminator."""
        return DiscriminatorTraining(
            module=self.discriminator,
            optimizer=self.config.optimizer,
            loss=self.discriminator_loss,
            start=self.config.start_step,
        )

    @property
    def ratio(self) -> Float64[Tensor, ""]:
        """What the weight is multiplied by at the next step."""
        if self.config.weighting == "fixed":
            return torch.ones_like(self._norms[0])
        reconstruction, gan = self._norms
        ratio = (reconstruction / gan.clamp(min=TINY)).clamp(max=self.config.max_ratio)
        return torch.where(self._norms.isnan().any(), 0.0, ratio)

    def generator_loss(
        self,
        reconstruction: Float[Tensor, "b 3 t h w"],
        posterior: DiagonalGaussian,
        video: Float[Tensor, "b 3 t h w"],
        info: StepInfo,
        last_layer: Sequence[Tensor],
        *,
        encoded: Float[Tensor, "b 3 t h2 w2"] | None = None,
    ) -> Losses:
        """Eq. 5 for the VAE.

        Args:
            last_layer: parameters at which gradients are compared.
            encoded: as for `VAELoss`.
        Returns: values as of `VAELoss`, and once the term has started "gan" (minus the mean logit)
        and "gan_weight" (what the term is multiplied by); the real and the reconstructed clips
        for the discriminator.
        """
        if info.step < self.config.start_step:
            return Losses(self.loss(reconstruction, video, posterior, encoded=encoded))

        # Both terms at the reconstruction
        leaf = wide(reconstruction.detach()).requires_grad_()
        values = self.loss.reconstruction(leaf, video)
        gradient = grad(values["loss"], leaf)[0]
        with frozen(self.discriminator):
            gan = -wide(self.discriminator(leaf)).mean()
        gan_gradient = grad(REFERENCE_VALUES * gan, leaf)[0]

        # How much the second counts
        weight = self.config.weight * self.config.ramp_at(info.step) * self.ratio
        if self.config.weighting == "adaptive":
            pairs = ((values["loss"], gradient), (gan, gan_gradient))
            self._measure(wide(reconstruction), pairs, last_layer, info)

        # Their sum, whose gradient goes on from the reconstruction
        regular = self.loss.regularization(posterior, video if encoded is None else encoded)
        term = (weight * REFERENCE_VALUES).to(gan.dtype) * gan.detach()
        loss = values["loss"].detach() + term
        path = (wide(reconstruction) * (gradient + weight * gan_gradient)).sum()
        loss = loss + (path - path.detach()) + regular["loss"]
        values |= {**regular, "gan": gan, "gan_weight": weight.float(), "loss": loss}
        return Losses(values, {"real": video, "fake": leaf.detach()})

    def discriminator_loss(
        self, module: nn.Module, clips: Mapping[str, Tensor], info: StepInfo
    ) -> Losses:
        """Hinge loss of the discriminator, mean over patches, and with r1_weight its penalty.

        Args:
            clips: "real" and "fake" ones, `b 3 t h w`.
        Returns: "loss", "hinge", the mean logits "real" and "fake", and "r1".
        """
        penalize = self.config.r1_weight > 0
        video = clips["real"].detach().requires_grad_(penalize)
        both = torch.cat([video, clips["fake"].to(video)])
        real, fake = wide(module(both)).chunk(2)
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        values = {"hinge": hinge, "real": real.mean(), "fake": fake.mean(), "loss": hinge}
        if penalize:
            per_clip = real.flatten(1).mean(1).sum()
            slope = grad(per_clip, video, create_graph=True)[0]
            r1 = 0.5 * slope.square().flatten(1).sum(1).mean()
            values |= {"r1": r1, "loss": hinge + self.config.r1_weight * r1}
        return Losses(values)

    def state_dict(self) -> dict[str, Any]:
        """The running norms, for JSON."""
        norms = self._norms.tolist()
        return {"norms": None if math.isnan(norms[0]) else norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._sums = None
        norms = state["norms"] or [math.nan] * 2
        self._norms = torch.tensor(norms, dtype=torch.float64, device=self.accelerator.device)

    def _measure(
        self,
        reconstruction: Tensor,
        terms: tuple[tuple[Tensor, Tensor], ...],
        last_layer: Sequence[Tensor],
        info: StepInfo,
    ) -> None:
        """Add this micro-batch's gradients; with the last one of the step renew the norms.

        `terms`: value and gradient at the reconstruction, of both.
        """
        parts = []
        for value, gradient in terms:
            at_layer = grad(reconstruction, list(last_layer), gradient, retain_graph=True)
            flat = torch.cat([wide(g).flatten() for g in at_layer])
            parts.append(info.share * (flat + 0 * value.detach()))  # NaN if the value is not finite
        before = self._sums
        self._sums = (
            parts if before is None else [a + b for a, b in zip(before, parts, strict=True)]
        )
        if not info.last:
            return
        total = self.accelerator.reduce(torch.stack(self._sums), "mean")
        assert isinstance(total, Tensor)
        self._sums = None
        new, old = total.norm(dim=1).double(), self._norms
        keep = self.config.smoothing
        mean = torch.where(old.isnan(), new, keep * old + (1 - keep) * new)
        # a step that is not finite changes nothing
        self._norms = torch.where(total.isfinite().all(), mean, old)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter of `module` takes gradients within; those that did do again afterwards."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
