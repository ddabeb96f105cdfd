"""What train_latte leaves, ready to sample from: the model, what it knows, the labels of clips."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from common.seeding import fold
from latte.model import Latte
from latte.samplers import SamplerConfig, sample
from latte.training_metadata import TrainingMetadata

Weights = Literal["ema", "raw"]


def load_trained(source: str | Path, weights: Weights = "ema") -> tuple[Latte, TrainingMetadata]:
    """A trained model and what it knows of its latents.

    Args:
        source: export folder of train_latte, or one of its checkpoints.
        weights: the averaged ones, or a checkpoint's raw ones.

    Raises:
        ValueError: no such folder, or raw weights of an export.
    """
    folder = Path(source)
    averaged = folder / "ema" if (folder / "state.json").is_file() else folder
    latte, metadata = Latte.from_pretrained(averaged), TrainingMetadata.load(averaged)
    if weights == "raw":
        file = folder / "model.safetensors"
        if averaged == folder or not file.is_file():
            raise ValueError(
                f"{folder}: has no raw weights. Give a checkpoint, such as RUN/checkpoints/step-N."
            )
        latte.load_state_dict(load_file(file))
    return latte, metadata


def clip_labels(
    classes: int | None,
    count: int,
    chosen: Sequence[int] | None = None,
    *,
    random_seed: int | None = None,
) -> list[int] | None:
    """The label of each clip; None of an unconditional model.

    Args:
        classes: of the model; None if it is unconditional.
        count: clips.
        chosen: labels to take in turn; None takes all.
        random_seed: draw each clip's label uniformly from them, by this seed and its number.

    Raises:
        ValueError: labels that the model does not know.
    """
    if classes is None:
        if chosen is not None or random_seed is not None:
            raise ValueError("the model is unconditional; it takes no labels")
        return None
    chosen = range(classes) if chosen is None else tuple(chosen)
    if not chosen or min(chosen) < 0 or max(chosen) >= classes:
        raise ValueError(f"labels={chosen}: the model knows the classes 0 to {classes - 1}")
    places = range(count)
    if random_seed is not None:
        places = [fold(random_seed, "label", i) for i in places]
    return [chosen[place % len(chosen)] for place in places]


def sample_clips(
    latte: Latte,
    metadata: TrainingMetadata,
    sampler: SamplerConfig,
    clips: Sequence[int],
    *,
    labels: Sequence[int] | None,
    seed: int,
    batch_size: int,
    known: Callable[[Sequence[int]], Float[Tensor, "b c k h w"]] | None = None,
    autocast: Callable[..., AbstractContextManager] = nullcontext,
) -> Iterator[tuple[int, Float[Tensor, "1 c t h w"]]]:
    """Raw latents of clips, each with its number.

    Args:
        clips: their numbers in the whole set, which with the seed give their noise.
        labels: of the whole set; None of an unconditional model.
        batch_size: clips per forward pass; does not change them.
        known: raw latents of the first frames of clips, which are then continued.
        autocast: makes what the model runs in.
    """
    for first in range(0, len(clips), batch_size):
        indices = clips[first : first + batch_size]
        with autocast():
            z = sample(
                latte,
                metadata.process,
                sampler,
                indices=indices,
                labels=None if labels is None else [labels[i] for i in indices],
                seed=seed,
                known=None if known is None else metadata.normalize(known(indices)),
            )
        yield from zip(indices, metadata.denormalize(z).split(1), strict=True)
