"""Continuing given frames: image to video with a model that was not trained for it.

Ours, not Latte's: the replacement method of video diffusion (Ho et al. 2022, section 3.1) for every
sampler. In place of the model's prediction for the known frames stands that of a model which knows
them. So they follow the path of the training process that ends in them, the model sees them at the
noise level of the others, and the others come to fit. The model learns of them only through
attention in time: expect less consistency than from a model trained to continue.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from latte.diffusion import Latents, ModelFn
from latte.diffusion_process import DiffusionProcess


def replacement_guidance(
    model_fn: ModelFn, process: DiffusionProcess, known: Float[Tensor, "b c k h w"], start: Latents
) -> ModelFn:
    """Make a sampler keep the first k frames of each clip.

    Args:
        model_fn: The model with labels and guidance bound.
        process: The one it was trained on, with its whole schedule.
        known: Normalized latents of the first frames.
        start: The noise that sampling begins with.

    Raises:
        ValueError: known frames of another size, or as many as a clip has.
    """
    k = known.shape[2]
    b, c, frames, *size = start.shape
    if not 1 <= k < frames or known.shape != (b, c, k, *size):
        raise ValueError(
            f"continuation: known frames of shape {tuple(known.shape)}, but clips of "
            f"{tuple(start.shape)} need {(b, c, 'k', *size)} with k from 1 to {frames - 1}."
        )

    def predict(x: Tensor, t: Tensor) -> Tensor:
        output = model_fn(x, t).float()
        right = process.exact_prediction(known, x[:, :, :k], t, start[:, :, :k])
        # With a learned variance -1 asks for that of the posterior, which is right for these.
        variance = right.new_full((b, output.shape[1] - c, k, *size), -1.0)
        first = torch.cat([right, variance], dim=1)
        return torch.cat([first, output[:, :, k:]], dim=2)

    return predict
