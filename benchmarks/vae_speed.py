"""IV-VAE against a plain loop over frame groups with the same weights, as released code runs it.

    OMP_NUM_THREADS=1 python -m benchmarks.vae_speed                               # a CPU
    python -m benchmarks.vae_speed --height 720 --width 1280 --train_height 256 --train_width 256 \\
        --device cuda --precision bfloat16 --compile true                          # a GPU

The plain form is `benchmarks.vae_plain`. Results are compared on the training step's video before
anything is timed. Ours is `encode` and `decode`, which run as many groups at once as fit. Each rate
counts the operations that its form does (convolutions, products of attention; a training step three
times the forward ones), and stands beside the rate of square matrix products. On a CPU it is
processor time that counts, so that other work on the machine disturbs less: run it with one thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from benchmarks.shared import (
    clock,
    count_flop,
    matmul_rate,
    peak_bytes,
    scrambled,
    seconds_in_turns,
)
from benchmarks.vae_plain import Plain
from common.cli import main
from eval.features.extractors import full_precision
from vae import DiagonalGaussian, VAEConfig, VideoVAE


@dataclass(frozen=True, kw_only=True)
class VAESpeed:
    """Time IV-VAE against a plain implementation of the same model."""

    dim: int = 64
    """Channels of one branch at the first level."""
    z_dim: int = 16
    """Latent channels."""
    frames: int = 17
    """Frames per video, 1 + 4n."""
    height: int = 64
    """Pixels."""
    width: int = 64
    """Pixels."""
    train_height: int = 32
    """Pixels of the training step's video."""
    train_width: int = 32
    """Pixels of the training step's video."""
    batch_size: int = 1
    """Videos at once."""
    repeats: int = 3
    """Timed runs of each, taking turns; the median counts."""
    device: str = "cpu"
    """Torch device, such as cuda."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Autocast type of the timed runs; results are compared in float32."""
    compile: bool = False
    """Run ours through torch.compile."""


Call = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Task:
    """The same work, ours and plain; both give the same tensors."""

    name: str
    ours: Call
    plain: Call
    learns: bool = False
    """Whether it needs gradients."""


def run(config: VAESpeed) -> None:
    """Compare, time and print ratios (above 1: ours is faster)."""
    torch.manual_seed(0)
    model = scrambled(VideoVAE(VAEConfig(z_dim=config.z_dim, dim=config.dim))).to(config.device)
    if config.compile:
        model.encoder.compile(dynamic=False)
        model.decoder.compile(dynamic=False)
    small = video(config, config.train_height, config.train_width)
    with full_precision(torch.device(config.device)):
        for task in tasks(model, small, small):
            check(task)
    peak = matmul_rate(config.device, getattr(torch, config.precision))
    print(f"{config.device}, {torch.get_num_threads()} threads, {config.precision}: ", end="")
    print(f"matrix products at {peak / 1e9:.0f} GFLOP/s")
    for task in tasks(model, video(config, config.height, config.width), small):
        report(config, task, peak)


def tasks(model: VideoVAE, x: Tensor, small: Tensor) -> list[Task]:
    """Encoding `x`, decoding a random latent of its size, and a training step on `small`."""
    plain = Plain(model)
    z = torch.randn(len(x), *model.config.latent_shape(*x.shape[2:])).to(x)

    def encode(x: Tensor) -> Tensor:
        return model.encode(x).moments

    return [
        Task("encode", lambda: [encode(x)], lambda: [plain.encode(x)]),
        Task("decode", lambda: [model.decode(z)], lambda: [plain.decode(z)]),
        Task(
            "training step",
            lambda: train(model, encode, model.decode, small),
            lambda: train(model, plain.encode, plain.decode, small),
            learns=True,
        ),
    ]


def video(config: VAESpeed, height: int, width: int) -> Tensor:
    """Uniform noise in [-1, 1]."""
    x = torch.rand(config.batch_size, 3, config.frames, height, width) * 2 - 1
    return x.to(config.device)


def train(
    model: VideoVAE,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
) -> list[Tensor]:
    """Loss and gradients of one step on squared error and KL; the loss alone under no_grad."""
    model.zero_grad(set_to_none=True)
    posterior = DiagonalGaussian.from_moments(encode(x))
    loss = (decode(posterior.mean) - x).square().mean() + 1e-6 * posterior.kl().mean()
    if torch.is_grad_enabled():
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def check(task: Task) -> None:
    """Print the relative difference in float32; stop if the two implementations disagree."""
    with torch.set_grad_enabled(task.learns):
        a, b = task.ours(), task.plain()
    norm = sum(t.square().sum() for t in b) ** 0.5
    difference = float(sum((s - t).square().sum() for s, t in zip(a, b, strict=True)) ** 0.5 / norm)
    print(f"{task.name}: relative difference {difference:.1e}")
    if not difference < 1e-3:
        raise RuntimeError(f"{task.name}: ours and the plain form differ by {difference:.1e}")


def report(config: VAESpeed, task: Task, peak: float) -> None:
    """Time both in turns; print a line for each."""
    names, calls, device = ("ours", "plain"), (task.ours, task.plain), torch.device(config.device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    with half, torch.set_grad_enabled(task.learns):
        memory = [peak_bytes(call, device) for call in calls]  # also warms up
        seconds = seconds_in_turns(calls, config.repeats, lambda: clock(device))
        flop = [count_flop(call, task.learns) for call in calls]
    times = [median(runs) for runs in seconds]
    print(f"{task.name}: {times[1] / times[0]:.2f} times as fast")
    for name, taken, done, used in zip(names, times, flop, memory, strict=True):
        rate = done / taken
        print(
            f"  {name:5} {taken:.3f} s, {done / 1e9:.1f} GFLOP, {rate / 1e9:.0f} GFLOP/s "
            f"({100 * rate / peak:.0f} %), peak memory {used / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main(VAESpeed, run)
