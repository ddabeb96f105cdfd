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
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from benchmarks import vae_speed
from benchmarks.vae_speed import count_flop, full_precision, matmul_rate, peak_bytes
from common.cli import main
from engine.ema import EMA
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
        diffusion = GaussianDiffusion().respaced(spaced_timesteps(1000, steps))
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
    with full_precision():
        check("gradients", [(form, form.gradients(x, y)) for form in todo])
        check("guided sampling", [(form, form.sample(x, y, steps)) for form in todo])
    print(f"{config.device}, {torch.get_num_threads()} threads, Latte-{config.size}/2")
    work = {
        "training step": [
            Task(f, lambda f=f: f.train(x, y), lambda f=f: f.gradients(x, y)) for f in todo
        ],
        f"guided sampling, {steps} steps": [
            Task(f, lambda f=f: f.sample(x, y, steps)) for f in todo
        ],
    }
    for name, tasks in work.items():
        report(config, name, tasks)


@dataclass(frozen=True)
class Task:
    """What is timed of a form."""

    form: Form
    run: Callable[[], Any]
    loss: Callable[[], Any] | None = None
    """The forward pass, of a training step."""

    def operations(self) -> int:
        """Of one run."""
        return count_flop(self.loss or self.run, learns=self.loss is not None)


def forms(config: LatteSpeed) -> list[Form]:
    """The plain form first, and ours; all with the same weights, every path of which counts."""
    side = {"height": config.side, "width": config.side}
    model = Latte(
        LatteConfig.preset(
            config.size, in_channels=4, num_frames=config.frames, num_classes=101, **side
        )
    )
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    model.to(config.device)
    plain, half, compiled = (copy.deepcopy(model) for _ in range(3))
    plain.blocks = nn.ModuleList(PlainBlock(block) for block in plain.blocks)  # type: ignore[arg-type]
    todo = [Form(plain, plain=True), Form(model), Form(half, "bfloat16")]
    if config.compile:
        for block in compiled.blocks:
            block.compile(dynamic=False)
        todo.append(Form(compiled, "bfloat16", compiled=True))
    return todo


def check(name: str, results: list[tuple[Form, Tensor]]) -> None:
    """Print the relative differences to the plain form; stop if one disagrees."""
    (_, wanted), *others = results
    for form, result in others:
        difference = float((result - wanted).norm() / wanted.norm())
        print(f"{name}: {form.name}: relative difference {difference:.1e}")
        if not difference < (1e-3 if form.precision == "float32" else 0.1):
            raise RuntimeError(f"{name}: {form.name} differs from the plain form")


def report(config: LatteSpeed, name: str, tasks: list[Task]) -> None:
    """Time all in turns; print a line of a table for each."""
    cuda = torch.device(config.device).type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    flop = tasks[0].operations(), tasks[1].operations()  # ours differ in precision alone
    memory = [peak_bytes(task.run, cuda) for task in tasks]  # also warms up
    seconds: list[list[float]] = [[] for _ in tasks]
    for _ in range(config.repeats):
        for task, times in zip(tasks, seconds, strict=True):
            start = clock()
            task.run()
            if cuda:
                torch.cuda.synchronize()
            times.append(clock() - start)
    median = [statistics.median(times) for times in seconds]
    print(f"\n| {name} | times as fast | s | share of matrix products' rate | memory, MB |")
    print("|---" * 5 + "|")
    for task, taken, used in zip(tasks, median, memory, strict=True):
        rate = flop[not task.form.plain] / taken
        options = {"device": config.device, "precision": task.form.precision}
        peak = matmul_rate(vae_speed.VAESpeed(**options))  # type: ignore[arg-type]
        seen = cuda or not task.form.compiled  # memory that compiled code takes on a CPU is not
        print(
            f"| {task.form.name} | {median[0] / taken:.2f} | {taken:.3f} | {100 * rate / peak:.0f} "
            f"% of {peak / 1e9:.0f} GFLOP/s | {f'{used / 1e6:.0f}' if seen else '-'} |"
        )


if __name__ == "__main__":
    main(LatteSpeed, run)
