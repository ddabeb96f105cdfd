"""Latte's training step and sampling against a plain implementation of the same model.

The plain one writes attention out (float32 softmax), computes the modulation once per frame or per
patch as the public code does, and guides with two model calls. Both share the same weights, and
their results are compared before anything is timed.
"""

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from engine.cli import main
from latte import Latte, LatteConfig
from latte.blocks import Attention, Block
from latte.diffusion import GaussianDiffusion, ModelFn
from latte.samplers import denoise, guided, spaced_timesteps


@dataclass(frozen=True, kw_only=True)
class Config:
    """Time Latte against a plain implementation of the same model."""

    size: Literal["S", "B", "L", "XL"] = "S"
    """Preset, with patch size 2 and 101 classes."""
    frames: int = 5
    """Latent frames."""
    side: int = 32
    """Latent rows and columns."""
    batch: int = 1
    """Clips per training step, and sampled at once."""
    sampling_steps: int = 2
    """DDIM steps, guided."""
    repeats: int = 3
    """Timed runs of each, taking turns; the median counts."""
    device: str = "cpu"
    """Torch device, such as cuda."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Autocast type of the timed runs; results are compared in float32."""


class PlainBlock(nn.Module):
    """A block of Latte, written out on rows of tokens with one condition each."""

    def __init__(self, block: Block):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        block, (_, frames, patches, _) = self.block, x.shape
        assert isinstance(block.attn, Attention)
        cond = cond.expand(-1, frames, -1)
        if block.attn.axis == "space":
            rows = rearrange(x, "b t n d -> (b t) n d")
            cond = rearrange(cond, "b t d -> (b t) d")
        else:
            rows = rearrange(x, "b t n d -> (b n) t d")
            cond = repeat(cond[:, 0], "b d -> (b n) d", n=patches)
        modulation = block.adaLN_modulation(cond)[:, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        rows = rows + gate * self._attend(block.norm1(rows) * (1 + scale) + shift)
        rows = rows + mlp_gate * block.mlp(block.norm2(rows) * (1 + mlp_scale) + mlp_shift)
        pattern = "(b t) n d -> b t n d" if block.attn.axis == "space" else "(b n) t d -> b t n d"
        return rearrange(rows, pattern, b=len(x))

    def _attend(self, rows: Tensor) -> Tensor:
        attention = self.block.attn
        assert isinstance(attention, Attention)
        qkv = rearrange(attention.qkv(rows), "r s (k h d) -> k r h s d", k=3, h=attention.num_heads)
        q, k, v = qkv
        scores = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
        y = scores.softmax(dim=-1).to(v.dtype) @ v
        return attention.proj(rearrange(y, "r h s d -> r s (h d)"))


def run(config: Config) -> None:
    """Compare, time and print ratios (above 1: ours is faster)."""
    torch.manual_seed(0)
    ours = build(config)
    plain = copy.deepcopy(ours)
    plain.blocks = nn.ModuleList(PlainBlock(block) for block in plain.blocks)  # type: ignore[arg-type]
    c = ours.config
    x = torch.randn(config.batch, c.in_channels, c.num_frames, c.height, c.width)
    x, y = x.to(config.device), torch.arange(config.batch, device=config.device)

    steps = config.sampling_steps
    pairs = {
        "training step": (lambda: train(ours, x, y), lambda: train(plain, x, y)),
        "guided sampling": (
            lambda: generate(guided(ours, y, 7.0), x, steps),
            lambda: generate(apart(plain, y), x, steps),
        ),
    }
    for name, (ours_call, plain_call) in pairs.items():
        check(name, ours_call(), plain_call())
    for name, (ours_call, plain_call) in pairs.items():
        report(config, name, ours_call, plain_call)


def build(config: Config) -> Latte:
    """A model whose zero-initialised layers are moved off zero, so that every path counts."""
    side = {"height": config.side, "width": config.side}
    model = Latte(
        LatteConfig.preset(
            config.size, in_channels=4, num_frames=config.frames, num_classes=101, **side
        )
    )
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.to(config.device)


def train(model: Latte, x: Tensor, y: Tensor) -> Tensor:
    """Loss and gradients of one step; returns the loss and each gradient's norm."""
    model.zero_grad(set_to_none=True)
    t = torch.full_like(y, 500)
    losses = GaussianDiffusion().training_loss(lambda x, t: model(x, t, y), x, t, x.flip(-1))
    losses["loss"].mean().backward()
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)  # the other model's memory is measured without them
    return torch.stack([losses["loss"].mean().detach(), *norms])


def apart(model: Latte, y: Tensor, scale: float = 7.0) -> ModelFn:
    """Guidance with one model call for each prediction."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        noise, v = model(x, t, y).chunk(2, dim=1)
        without = model(x, t, torch.full_like(y, model.config.null_label)).chunk(2, dim=1)[0]
        return torch.cat([without + scale * (noise - without), v], dim=1)

    return predict


@torch.no_grad()
def generate(model_fn: ModelFn, start: Tensor, steps: int) -> Tensor:
    """DDIM from given noise."""
    diffusion = GaussianDiffusion().respaced(spaced_timesteps(1000, steps))
    return denoise(model_fn, diffusion, start, torch.zeros_like, method="ddim")  # type: ignore[arg-type]


def check(name: str, ours: Tensor, plain: Tensor) -> None:
    """Print the relative difference in float32; stop if the two implementations disagree."""
    difference = ((ours - plain).norm() / plain.norm()).item()
    print(f"{name}: relative difference {difference:.1e}")
    if not difference < 1e-3:
        raise RuntimeError(f"{name}: ours and the plain implementation differ by {difference:.1e}")


def report(
    config: Config, name: str, ours: Callable[[], Tensor], plain: Callable[[], Tensor]
) -> None:
    """Time both in turns and print one line."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    memory: dict[str, float] = {}
    cuda = torch.device(config.device).type == "cuda"
    for attempt in range(config.repeats + 1):  # the first is a warm-up
        for key, call in (("ours", ours), ("plain", plain)):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            with autocast(config):
                call()
            if cuda:
                torch.cuda.synchronize()
                memory[key] = torch.cuda.max_memory_allocated() / 2**30
            if attempt:
                seconds[key].append(time.perf_counter() - start)
    a, b = statistics.median(seconds["ours"]), statistics.median(seconds["plain"])
    line = f"{name}: ours {a:.3f} s, plain {b:.3f} s, {b / a:.2f} times as fast"
    if cuda:
        line += f"; memory {memory['ours']:.2f} and {memory['plain']:.2f} GiB"
    print(line)


def autocast(config: Config) -> AbstractContextManager[object]:
    """Mixed precision for the timed runs, if asked for."""
    kind = torch.device(config.device).type
    return torch.autocast(kind, torch.bfloat16, enabled=config.precision == "bfloat16")


if __name__ == "__main__":
    main(Config, run)
