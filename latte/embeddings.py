"""What a token knows besides its patch: position, timestep, label."""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latte.config import LatteConfig


def temporal_positions(frames: int, dim: int) -> Float[Tensor, "t d"]:
    """Sine and cosine table of the positions 0 .. frames - 1, float32 in [-1, 1].

    Source: Vaswani et al. 2017, section 3.5, in the layout [sin, cos]; computed in float64.
    """
    return _sin_cos(torch.arange(frames, dtype=torch.float64), dim).float()


def spatial_positions(rows: int, columns: int, dim: int) -> Float[Tensor, "n d"]:
    """Table of a grid of rows * columns patches in row-major order, float32 in [-1, 1].

    The first half of the dimensions encodes the column, the second half the row, as in MAE
    (He et al. 2022); computed in float64. `dim` is a multiple of 4.
    """
    column = _sin_cos(torch.arange(columns, dtype=torch.float64), dim // 2)
    row = _sin_cos(torch.arange(rows, dtype=torch.float64), dim // 2)
    table = torch.cat(
        [repeat(column, "w d -> h w d", h=rows), repeat(row, "h d -> h w d", w=columns)], dim=-1
    )
    return rearrange(table, "h w d -> (h w) d").float()


def _sin_cos(position: Float[Tensor, " n"], dim: int) -> Float[Tensor, "n d"]:
    frequency = 10000.0 ** (-torch.arange(dim // 2, dtype=position.dtype) / (dim // 2))
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Sinusoids of the timestep, then two linear layers (Peebles and Xie 2023)."""

    width = 256
    """Sinusoidal features: 128 cosines, then 128 sines, periods from 2 pi up to 2 pi * 10000."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.width, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Int[Tensor, " b"] | Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Embed timesteps `t`, whole or fractional, in the training schedule's units (0 .. 999)."""
        half = self.width // 2
        ramp = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angle = t[:, None].float() * torch.exp(-math.log(10000) * ramp)  # b half
        features = torch.cat([angle.cos(), angle.sin()], dim=-1)  # b 256
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """One vector per class and one, the last, for no class."""

    def __init__(self, num_classes: int, hidden_size: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, y: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """Look up labels in 0 .. num_classes; num_classes is the null class."""
        return self.embedding_table(y)


def drop_labels(
    y: Int[Tensor, "b ..."], config: LatteConfig, generator: torch.Generator
) -> Int[Tensor, "b ..."]:
    """Replace the labels of random rows by the null class, for classifier-free guidance.

    The model itself never draws: its output is a function of its inputs in training too, and a
    resumed run repeats the same rows because it passes the same generator. A row's labels (clip and
    images of joint training) are dropped together, each row with chance `config.class_dropout`.

    Args:
        y: Labels 0 .. num_classes - 1, one row per clip, before they leave the CPU.
        config: Of the conditional model in training.
        generator: On the CPU; draws one number per row.

    Raises:
        ValueError: an unconditional model, or a label out of range.

    Source: Ho and Salimans 2022, algorithm 1.
    """
    check_labels(y, config)
    dropped: Bool[Tensor, " b"] = torch.rand(len(y), generator=generator) < config.class_dropout
    null = torch.full_like(y, config.null_label)
    return torch.where(dropped.view(-1, *[1] * (y.ndim - 1)).to(y.device), null, y)


def check_labels(y: Int[Tensor, "b ..."], config: LatteConfig) -> None:
    """Refuse labels that `config` has no class for; the null label is allowed.

    Raises:
        ValueError: an unconditional model, or a label outside 0 .. num_classes.
    """
    if config.num_classes is None:
        raise ValueError("Latte: labels given to an unconditional model. Set num_classes.")
    low, high = (int(bound) for bound in y.aminmax()) if y.numel() else (0, 0)
    if low < 0 or high > config.num_classes:
        raise ValueError(
            f"Latte: labels from {low} to {high}, but this model knows classes 0 to "
            f"{config.num_classes - 1} and the null label {config.num_classes}."
        )
