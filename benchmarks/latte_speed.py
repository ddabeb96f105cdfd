"""Latte's training step and sampling against a plain float32 implementation of the same model.

    OMP_NUM_THREADS=1 python -m benchmarks.latte_speed                  # a CPU
    python -m benchmarks.latte_speed --size XL --batch_size 8 --device cuda --compile true \\
        --sampling_steps 250                                            # a GPU

The plain one writes attention out (float32 softmax), computes the modulation once per frame or per
patch as the public code does, guides with two model calls, and updates weights and their average
one tensor after the other. Ours is timed in float32 and in mixed precision. All share the same
weights, and results are compared before anything is timed. Each rate counts the operations of its
form and stands beside the rate of square matrix products in its precision. On a CPU it is processor
time that counts, so that other work on the machine disturbs less: run it with one thread.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from benchmarks.shared import (
    clock,
    count_flop,
    matmul_rate,
    peak_bytes,
    scrambled,
    seconds_in_turns,
)
from common.cli import main
from engine.ema import EMA
from eval.features.extractors import full_precision
from latte import Latte, LatteConfig
from latte.blocks import Attention, Block
from latte.diffusion import GaussianDiffusion, ModelFn
from latte.samplers import denoise, guided, spaced_timesteps

GUIDANCE = 7.0
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class LatteSpeed:
    """Time Latte against a plain implementation of the same model."""

    size: Literal["S", "B", "L", "XL"] = "S"
    """Preset, with patch size 2 and 101 classes."""
    frames: int = 5
    """Latent frames."""
    side: int = 32
    """Latent rows and columns."""
    batch_size: int = 1
    """Clips per training step, and sampled at once."""
    sampling_steps: int = 2
    """DDIM steps, guided; each takes as long as the others."""
    repeats: int = 3
    """Timed runs of each, taking turns; the median counts."""
    device: str = "cpu"
    """Torch device, such as cuda."""
    compile: bool = False
    """Also time ours with compiled blocks."""


class PlainBlock(nn.Module):
    """A block of Latte, written out on rows of tokens with one condition each."""

    def __init__(self, block: Block):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """`b t n d` and conditions `b 1 d` -> `b t n d`."""
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


class Form:
    """One way to train and to sample the model.

    Args:
        model: its own copy.
        plain: guidance in two calls, and updates one tensor after the other.
        precision: of the forward and backward pass.
        compiled: whether its blocks are.
    """

    def __init__(
        self,
        model: Latte,
        precision: Precision = "float32",
        *,
        plain: bool = False,
        compiled: bool = False,
    ):
        self.model, self.precision = model, precision
        self.plain, self.compiled = plain, compiled
        kind = "plain" if plain else "ours"
        self.name = f"{kind}, {precision}" + (", compiled" if compiled else "")
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, weight_decay=0.0, foreach=False, fused=not plain
        )
        self.ema = EMA(model, 0.9999)

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Forward and backward pass; returns the loss and each gradient's norm."""
        self.optimizer.zero_grad(set_to_none=True)
        t = torch.full_like(y, 500)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            losses = GaussianDiffusion().training_loss(
                lambda x, t: self.model(x, t, y), x, t, x.flip(-1)
            )
        loss = losses["loss"].mean()
        if not torch.is_grad_enabled():
            return loss
        loss.backward()
        norms = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        return torch.stack([loss.detach(), *norms])

    def train(self, x: Tensor, y: Tensor) -> None:
        """A whole training step: the gradients, AdamW, and the average of the weights."""
        self.gradients(x, y)
        self.optimizer.step()
        if self.plain:
            pairs = zip(self.ema.model.parameters(), self.model.parameters(), strict=True)
            for average, weight in pairs:
                average.data.mul_(0.9999).add_(weight.data, alpha=1e-4)
        else:
            self.ema.update(self.model, 10**6)
        self.optimizer.zero_grad(set_to_none=True)  # the others' memory is measured without them

    @torch.no_grad()
    def sample(self, x: Tensor, y: Tensor, steps: int) -> Tensor:
        """DDIM from given noise, guided."""
        model_fn = apart(self.model, y) if self.plain else guided(self.model, y, GUIDANCE)
        diffusion = GaussianDiffusion(timesteps=spaced_timesteps(1000, steps))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return denoise(model_fn, diffusion, x, torch.zeros_like, method="ddim")  # type: ignore[arg-type]


def apart(model: Latte, y: Tensor) -> ModelFn:
    """Guidance with one model call for each prediction."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        noise, v = model(x, t, y).chunk(2, dim=1)
        without = model(x, t, torch.full_like(y, model.config.null_label)).chunk(2, dim=1)[0]
        return torch.cat([without + GUIDANCE * (noise - without), v], dim=1)

    return predict


def run(config: LatteSpeed) -> None:
    """Compare, time and print ratios (above 1: faster than the plain form)."""
    torch.manual_seed(0)
    todo = forms(config)
    c = todo[0].model.config
    x = torch.randn(config.batch_size, c.in_channels, c.num_frames, c.height, c.width)
    x, y = x.to(config.device), torch.arange(config.batch_size, device=config.device)
    steps = config.sampling_steps
    with full_precision(torch.device(config.device)):
        check("gradients", todo, lambda form: form.gradients(x, y))
        check("guided sampling", todo, lambda form: form.sample(x, y, steps))
    print(f"{config.device}, {torch.get_num_threads()} threads, Latte-{config.size}/2")
    report(
        *(config, "training step", todo, lambda form: form.train(x, y)),
        loss=lambda form: form.gradients(x, y),
    )
    name = f"guided sampling, {steps} steps"
    report(config, name, todo, lambda form: form.sample(x, y, steps))


def forms(config: LatteSpeed) -> list[Form]:
    """The plain form first, and ours; all with the same weights, every path of which counts."""
    shape = {"num_frames": config.frames, "height": config.side, "width": config.side}
    options = LatteConfig.preset(config.size, in_channels=4, num_classes=101, **shape)
    model = scrambled(Latte(options)).to(config.device)
    plain, half, compiled = (copy.deepcopy(model) for _ in range(3))
    plain.blocks = nn.ModuleList(PlainBlock(block) for block in plain.blocks)  # type: ignore[arg-type]
    todo = [Form(plain, plain=True), Form(model), Form(half, "bfloat16")]
    if config.compile:
        for block in compiled.blocks:
            block.compile(dynamic=False)
        todo.append(Form(compiled, "bfloat16", compiled=True))
    return todo


def check(name: str, todo: list[Form], call: Callable[[Form], Tensor]) -> None:
    """Print the relative differences to the plain form; stop if one disagrees."""
    wanted = call(todo[0])
    for form in todo[1:]:
        result = call(form)
        difference = float((result - wanted).norm() / wanted.norm())
        print(f"{name}: {form.name}: relative difference {difference:.1e}")
        if not difference < (1e-3 if form.precision == "float32" else 0.1):
            raise RuntimeError(f"{name}: {form.name} differs from the plain form")


def report(
    config: LatteSpeed,
    name: str,
    todo: list[Form],
    run: Callable[[Form], Any],
    *,
    loss: Callable[[Form], Any] | None = None,
) -> None:
    """Time all in turns; print a line of a table for each.

    Args:
        run: what is timed.
        loss: the forward pass, of a training step.
    """
    device = torch.device(config.device)
    calls = [partial(run, form) for form in todo]
    # ours differ in precision alone
    flop = [count_flop(partial(loss or run, form), learns=loss is not None) for form in todo[:2]]
    memory = [peak_bytes(call, device) for call in calls]  # also warms up
    seconds = seconds_in_turns(calls, config.repeats, lambda: clock(device))
    times = [median(runs) for runs in seconds]
    print(f"\n| {name} | times as fast | s | share of matrix products' rate | memory, MB |")
    print("|---" * 5 + "|")
    for form, taken, used in zip(todo, times, memory, strict=True):
        rate = flop[not form.plain] / taken
        peak = matmul_rate(device, getattr(torch, form.precision))
        # memory that compiled code takes on a CPU is not seen
        seen = device.type == "cuda" or not form.compiled
        print(
            f"| {form.name} | {times[0] / taken:.2f} | {taken:.3f} | {100 * rate / peak:.0f} "
            f"% of {peak / 1e9:.0f} GFLOP/s | {f'{used / 1e6:.0f}' if seen else '-'} |"
        )


if __name__ == "__main__":
    main(LatteSpeed, run)
