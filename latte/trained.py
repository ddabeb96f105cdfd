"""What train_latte leaves, ready to sample from: the model, what it knows, the labels of clips."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from common.config import MAY_CHANGE, BatchSize, Config
from common.seeding import fold
from latte.model import Latte
from latte.samplers import SamplerConfig, check_sampler, sample
from latte.training_metadata import TrainingMetadata

Weights = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True)
class Sampling(Config):
    """Which latents a trained model draws."""

    latte: Annotated[str, MAY_CHANGE]
    """Export folder of train_latte, or one of its checkpoints."""
    weights: Weights = "ema"
    """The averaged weights, or a checkpoint's raw ones."""
    untrained: bool = False
    """Use fresh weights of the same model: the score of having learned nothing, for comparison."""
    labels: tuple[int, ...] | None = None
    """Labels to take in turn; default: all classes in turn."""
    random_labels: bool = False
    """Draw each clip's label uniformly from them instead, by the clip's number."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Sampler, steps and guidance."""
    seed: int = 0
    """With the clip's number, gives its noise."""
    batch_size: Annotated[BatchSize, MAY_CHANGE] = 8
    """Clips per forward pass and process; does not change them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.untrained and self.weights == "raw":
            raise ValueError("weights=raw has no effect on untrained=true; leave one out")

    def load(self) -> tuple[Latte, TrainingMetadata]:
        """The trained model and what it knows of its latents.

        Raises:
            ValueError: no such folder, raw weights of an export, or a sampler of another process.
        """
        folder = Path(self.latte)
        averaged = folder / "ema" if (folder / "state.json").is_file() else folder
        latte, metadata = Latte.from_pretrained(averaged), TrainingMetadata.load(averaged)
        if self.weights == "raw":
            file = folder / "model.safetensors"
            if averaged == folder or not file.is_file():
                raise ValueError(
                    f"{folder}: has no raw weights. Give a checkpoint, such as "
                    "RUN/checkpoints/step-N."
                )
            latte.load_state_dict(load_file(file))
        check_sampler(self.sampler, metadata.process, latte.config)
        return latte, metadata

    def sampled_model(self, trained: Latte) -> Latte:
        """The trained model, or with `untrained` a fresh one of its config, by the seed."""
        if not self.untrained:
            return trained
        torch.manual_seed(fold(self.seed, "untrained"))
        return Latte(trained.config).eval()

    def clip_labels(self, classes: int | None, count: int) -> list[int] | None:
        """The label of each of `count` clips; None of an unconditional model, without `classes`.

        Raises:
            ValueError: labels that the model does not know.
        """
        if classes is None:
            if self.labels is not None or self.random_labels:
                raise ValueError("the model is unconditional; it takes no labels")
            return None
        chosen = range(classes) if self.labels is None else self.labels
        if not chosen or min(chosen) < 0 or max(chosen) >= classes:
            raise ValueError(f"labels={chosen}: the model knows the classes 0 to {classes - 1}")
        places = range(count)
        if self.random_labels:
            places = [fold(self.seed, "label", i) for i in places]
        return [chosen[place % len(chosen)] for place in places]


def sample_clips(
    config: Sampling,
    latte: Latte,
    metadata: TrainingMetadata,
    clips: Sequence[int],
    *,
    labels: Sequence[int] | None,
    known: Callable[[Sequence[int]], Float[Tensor, "b c k h w"]] | None = None,
    autocast: Callable[..., AbstractContextManager] = nullcontext,
) -> Iterator[tuple[int, Float[Tensor, "1 c t h w"]]]:
    """Raw latents of clips, each with its number.

    Args:
        config: sampler, seed and batch size.
        latte: as `config.sampled_model` gives it.
        clips: their numbers in the whole set, which with the seed give their noise.
        labels: of the whole set; None of an unconditional model.
        known: raw latents of the first frames of clips, which are then continued.
        autocast: makes what the model runs in.
    """
    for first in range(0, len(clips), config.batch_size):
        indices = clips[first : first + config.batch_size]
        with autocast():
            z = sample(
                latte,
                metadata.process,
                config.sampler,
                indices=indices,
                labels=None if labels is None else [labels[i] for i in indices],
                seed=config.seed,
                known=None if known is None else metadata.normalize(known(indices)),
            )
        yield from zip(indices, metadata.denormalize(z).split(1), strict=True)
