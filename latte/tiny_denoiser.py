"""A fixed tiny denoiser: how well latents are learned on one small budget, by quarter of the way
to noise."""

from dataclasses import dataclass
from typing import Annotated

import torch
from accelerate import Accelerator
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor
from tqdm import trange

from common.config import Config
from common.seeding import generator
from engine.losses import StepInfo
from latte.config import LatteConfig
from latte.flow import RectifiedFlow
from latte.training import JointBatch, LatteLoss, initial_model

HELD_OUT = 4
"""Every fourth clip is scored, the others are trained on."""


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(Config):
    """A small unconditional Latte with patch 1 and a rectified flow. Its losses compare between
    latents of one size, and only with equal options."""

    steps: Annotated[int, Ge(1), Le(1_000_000)] = 400
    """Of AdamW at a learning rate of 1e-3."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Clips of a step."""
    hidden_size: Annotated[int, Ge(4)] = 64
    """Width of a token; the model has 4 blocks of 4 heads."""


def denoiser_losses(
    latents: Float[Tensor, "n c t h w"],
    config: DenoiserConfig,
    accelerator: Accelerator,
    *,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Train the denoiser on three of four clips, score it on the others.

    Args:
        latents: Normalized per channel, on the CPU.
        seed: Of weights, batches, times and noise.

    Returns:
        Squared error of the velocity (2 for a model that predicts 0) as `mse`, and by quarter
        of the way from data to noise as `mse_quarter_1` to `mse_quarter_4`.

    Raises:
        ValueError: Fewer than four clips.
    """
    if len(latents) < HELD_OUT:
        raise ValueError(f"{len(latents)} latents: the denoiser needs at least {HELD_OUT}")
    held_out = torch.arange(len(latents)) % HELD_OUT == HELD_OUT - 1
    clips, scored = latents[~held_out], latents[held_out]
    c, t, h, w = latents.shape[1:]
    size = LatteConfig(
        in_channels=c,
        num_frames=t,
        height=h,
        width=w,
        patch_size=1,
        hidden_size=config.hidden_size,
        depth=4,
        num_heads=4,
        learn_sigma=False,
    )
    model = initial_model(size, seed).to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    joint = JointBatch(config.batch_size, 0, t)
    loss = LatteLoss(RectifiedFlow(), size, joint, accelerator)
    positions = range(config.batch_size)
    for step in trange(config.steps, desc="tiny denoiser", disable=not progress):
        chosen = generator(seed, "probe batch", step)
        rows = torch.randint(len(clips), (config.batch_size,), generator=chosen)
        batch = {"latent": clips[rows]}
        batch |= loss.draw(batch, seed, step, positions)
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        info = StepInfo(seed, step, positions)
        loss(model, batch, info).values["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.scores(model.eval(), [(z, 0) for z in scored], seed)
