"""IV-VAE against a plain loop over frame groups with the same weights, as released code runs it.

    python -m benchmarks.vae_speed                                                 # a CPU
    python -m benchmarks.vae_speed --dim 64 --height 720 --width 1280 \\
        --device cuda --precision bfloat16 --compile true                          # a GPU

The plain form takes the image frame and then one group of frames at a time through the network:
a Conv2d beside a padded Conv3d, branches one after the other, results joined at the end. Results
are compared before anything is timed. On a CPU it is processor time that counts, so that other work
on the machine disturbs less: run it with one thread (OMP_NUM_THREADS=1).
"""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from benchmarks.live_memory import LiveMemory
from engine.cli import main
from vae import DiagonalGaussian, VAEConfig, VideoVAE
from vae.blocks import Attention, NormSiLU, ResidualBlock, RMSNorm
from vae.complexity import count_macs
from vae.convs import KTCConv
from vae.resample import Downsample, Upsample


@dataclass(frozen=True, kw_only=True)
class Config:
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
    train_height: int = 64
    """Pixels of the training step's video."""
    train_width: int = 64
    """Pixels of the training step's video."""
    batch: int = 1
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


def run(config: Config) -> None:
    """Compare, time and print ratios (above 1: ours is faster)."""
    torch.manual_seed(0)
    model = build(config)
    plain = Plain(model)
    x = video(config, config.height, config.width)
    small = video(config, config.train_height, config.train_width)
    z = torch.randn(1, *model.config.latent_shape(*x.shape[2:]), device=config.device)
    steps = (model.encode_step, model.decode_step)
    if config.compile:
        steps = tuple(torch.compile(step) for step in steps)
    pairs: dict[str, tuple[Call, Call]] = {
        "encode": (lambda: [steps[0](x)[0]], lambda: [plain.encode(x)]),
        "decode": (lambda: [steps[1](z)[0]], lambda: [plain.decode(z)]),
        "training step": (
            lambda: train(model, lambda x: steps[0](x)[0], lambda z: steps[1](z)[0], small),
            lambda: train(model, plain.encode, plain.decode, small),
        ),
    }
    encode, decode = count_macs(model.config, *x.shape[2:])
    step = [2 * (m.convolution + m.attention) for m in count_macs(model.config, *small.shape[2:])]
    flop = {
        "encode": 2 * (encode.convolution + encode.attention),
        "decode": 2 * (decode.convolution + decode.attention),
        "training step": 3 * sum(step),
    }
    for name, (ours, theirs) in pairs.items():
        check(name, ours, theirs, gradients=name == "training step")
    peak = matmul_rate(config)
    print(f"{config.device}, {torch.get_num_threads()} threads, {config.precision}: ", end="")
    print(f"matrix products at {peak / 1e9:.0f} GFLOP/s")
    for name, (ours, theirs) in pairs.items():
        report(config, name, ours, theirs, config.batch * flop[name], peak, name[0] == "t")


def build(config: Config) -> VideoVAE:
    """A model whose residual branches do not start at zero, so that every path counts."""
    model = VideoVAE(VAEConfig(z_dim=config.z_dim, dim=config.dim))
    for parameter in model.parameters():
        if not parameter.any() and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
    return model.to(config.device)


def video(config: Config, height: int, width: int) -> Tensor:
    """Uniform noise in [-1, 1]."""
    x = torch.rand(config.batch, 3, config.frames, height, width) * 2 - 1
    return x.to(config.device)


def train(
    model: VideoVAE,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
) -> list[Tensor]:
    """Loss and gradients of one step on squared error and KL."""
    model.zero_grad(set_to_none=True)
    posterior = DiagonalGaussian.from_moments(encode(x))
    loss = (decode(posterior.mean) - x).square().mean() + 1e-6 * posterior.kl().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def check(name: str, ours: Call, theirs: Call, gradients: bool) -> None:
    """Print the relative difference in float32; stop if the two implementations disagree."""
    with torch.set_grad_enabled(gradients):
        a, b = ours(), theirs()
    norm = sum(t.square().sum() for t in b) ** 0.5
    difference = float(sum((s - t).square().sum() for s, t in zip(a, b, strict=True)) ** 0.5 / norm)
    print(f"{name}: relative difference {difference:.1e}")
    if not difference < 1e-3:
        raise RuntimeError(f"{name}: ours and the plain implementation differ by {difference:.1e}")


def report(
    config: Config, name: str, ours: Call, theirs: Call, flop: int, peak: float, gradients: bool
) -> None:
    """Time both in turns and print one line."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    memory: dict[str, float] = {}
    cuda = torch.device(config.device).type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    with autocast(config), torch.set_grad_enabled(gradients):
        for key, call in (("ours", ours), ("plain", theirs)):  # this also warms up
            memory[key] = peak_memory(call, cuda)
        for _ in range(config.repeats):
            for key, call in (("ours", ours), ("plain", theirs)):
                start = clock()
                call()
                if cuda:
                    torch.cuda.synchronize()
                seconds[key].append(clock() - start)
    a, b = statistics.median(seconds["ours"]), statistics.median(seconds["plain"])
    print(
        f"{name}: ours {a:.3f} s, plain {b:.3f} s, {b / a:.2f} times as fast; "
        f"{flop / 1e9:.0f} GFLOP, {flop / a / 1e9:.0f} GFLOP/s, {100 * flop / a / peak:.0f} %; "
        f"memory {memory['ours'] / 2**20:.0f} and {memory['plain'] / 2**20:.0f} MiB"
    )


def peak_memory(call: Call, cuda: bool) -> float:
    """Bytes of all tensors at most while it runs; on a GPU with the weights."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    with LiveMemory() as memory:
        call()
    return memory.peak


def matmul_rate(config: Config) -> float:
    """FLOP/s of square matrix products in the timed precision."""
    cuda = torch.device(config.device).type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    size = 8192 if cuda else 1024
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    a = torch.randn(size, size, device=config.device, dtype=dtype)
    times = []
    for _ in range(8):
        start = clock()
        (a @ a)[0, 0].item()
        times.append(clock() - start)
    return 2 * size**3 / min(times)


def autocast(config: Config) -> AbstractContextManager[object]:
    """Mixed precision for the timed runs, if asked for."""
    kind = torch.device(config.device).type
    return torch.autocast(kind, torch.bfloat16, enabled=config.precision == "bfloat16")


class Plain:
    """The released IV-VAE written out: `b c t h w`, group by group, with `model`'s weights."""

    def __init__(self, model: VideoVAE):
        self.model = model

    def encode(self, x: Tensor) -> Tensor:
        """Moments, as `VideoVAE.encode_step` gives them."""
        encoder, past, parts = self.model.encoder, {}, []
        for group in (x[:, :, :1], *x[:, :, 1:].split(4, dim=2)):
            y = self.layer(encoder.conv_in, group, past)
            for layer in (*encoder.layers, *encoder.middle):
                y = self.layer(layer, y, past)
            y = self.layer(encoder.norm_out, y, past)
            parts.append(frames(encoder.head, y))
        y = frames(self.model.to_moments, torch.cat(parts, dim=2))
        return rearrange(y, "b (k m z) t h w -> b (m k z) t h w", k=2, m=2)

    def decode(self, z: Tensor) -> Tensor:
        """Frames, as `VideoVAE.decode_step` gives them."""
        decoder, past, parts = self.model.decoder, {}, []
        z = frames(self.model.from_latent, z)
        for group in z.split(1, dim=2):
            y = self.layer(decoder.conv_in, group, past)
            for layer in (*decoder.middle, *decoder.layers):
                y = self.layer(layer, y, past)
            y = self.layer(decoder.norm_out, y, past)
            keyframe, motion = self.layer(decoder.head, y, past).chunk(2, dim=1)
            parts.append(torch.cat([keyframe[:, :, :1], motion[:, :, 1:]], dim=2))
        return torch.cat(parts, dim=2)

    def layer(self, layer: nn.Module, x: Tensor, past: dict[nn.Module, Tensor]) -> Tensor:
        """One layer on one group; `past` holds the last frame each convolution has read."""
        match layer:
            case KTCConv():
                return self.ktc(layer, x, past)
            case ResidualBlock():
                y = self.layer(layer.conv1, self.layer(layer.norm1, x, past), past)
                y = self.layer(layer.conv2, self.layer(layer.norm2, y, past), past)
                return y + frames(layer.shortcut, x)
            case RMSNorm():
                halves = [F.normalize(half, dim=1) for half in x.chunk(2, dim=1)]
                scale = (x.shape[1] // 2) ** 0.5 * layer.gain.view(-1, 1, 1, 1)
                y = torch.cat(halves, dim=1) * scale
                return F.silu(y) if isinstance(layer, NormSiLU) else y
            case Attention():
                return self.attention(layer, x, past)
            case Downsample():
                return self.downsample(layer, x, bool(past.get(layer, False)), past)
            case Upsample():
                return self.upsample(layer, x, bool(past.get(layer, False)), past)
            case _:
                return frames(layer, x)

    def ktc(self, layer: KTCConv, x: Tensor, past: dict[nn.Module, Tensor]) -> Tensor:
        before = past.get(layer, x[:, :, :1])
        past[layer] = x[:, :, -1:]
        padded = F.pad(torch.cat([before, x, torch.zeros_like(before)], dim=2), (1, 1, 1, 1))
        motion = F.conv3d(padded, layer.motion.weight, layer.motion.bias)
        return torch.cat([frames(layer.keyframe, x), motion], dim=1)

    def attention(self, layer: Attention, x: Tensor, past: dict[nn.Module, Tensor]) -> Tensor:
        y = rearrange(self.layer(layer.norm, x, past), "b c t h w -> (b t) c h w")
        weights = [layer.to_qkv.weight, layer.to_qkv.bias, layer.to_out.weight, layer.to_out.bias]
        outputs = []
        for half, (w, b, out_w, out_b) in zip(
            y.chunk(2, dim=1), zip(*(p.chunk(2) for p in weights), strict=True), strict=True
        ):
            qkv = rearrange(F.conv2d(half, w, b), "n (q c) h w -> q n 1 (h w) c", q=3)
            q, k, v = qkv.contiguous()
            out = F.scaled_dot_product_attention(q, k, v)
            out = rearrange(out, "n 1 (h w) c -> n c h w", h=y.shape[2])
            outputs.append(F.conv2d(out, out_w, out_b))
        return x + rearrange(torch.cat(outputs, dim=1), "(b t) c h w -> b c t h w", b=len(x))

    def downsample(
        self, layer: Downsample, x: Tensor, later: bool, past: dict[nn.Module, Tensor]
    ) -> Tensor:
        past[layer] = torch.ones(1)
        halves = []
        for half, w, b in zip(
            x.chunk(2, dim=1),
            halves_of(layer.spatial.weight),
            halves_of(layer.spatial.bias),
            strict=True,
        ):
            flat = F.pad(rearrange(half, "b c t h w -> (b t) c h w"), (0, 1, 0, 1))
            y = F.conv2d(flat, w, b, stride=2)
            halves.append(rearrange(y, "(b t) c h w -> b c t h w", b=len(x)))
        if layer.temporal is not None and later:
            conv = layer.temporal
            halves = [
                halves[0][:, :, ::2],
                F.conv3d(halves[1], conv.weight, conv.bias, stride=(2, 1, 1)),
            ]
        return torch.cat(halves, dim=1)

    def upsample(
        self, layer: Upsample, x: Tensor, later: bool, past: dict[nn.Module, Tensor]
    ) -> Tensor:
        past[layer] = torch.ones(1)
        keyframe, motion = x.chunk(2, dim=1)
        if layer.temporal is not None and later:
            keyframe = keyframe.repeat_interleave(2, dim=2)
            both = F.conv3d(motion, layer.temporal.weight, layer.temporal.bias)
            motion = rearrange(both, "b (k c) t h w -> b c (t k) h w", k=2)
        outputs = []
        for half, w, b in zip(
            (keyframe, motion),
            halves_of(layer.spatial.weight),
            halves_of(layer.spatial.bias),
            strict=True,
        ):
            flat = rearrange(half, "b c t h w -> (b t) c h w")
            y = F.conv2d(
                F.interpolate(flat, scale_factor=2.0, mode="nearest-exact"), w, b, padding=1
            )
            outputs.append(rearrange(y, "(b t) c h w -> b c t h w", b=len(x)))
        return torch.cat(outputs, dim=1)


def halves_of(parameter: Tensor | None) -> tuple[Tensor, ...]:
    """The parts of a weight or bias that belong to each branch."""
    assert parameter is not None
    return parameter.chunk(2)


def frames(layer: nn.Module, x: Tensor) -> Tensor:
    """A 2D layer on every frame."""
    y = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(y, "(b t) c h w -> b c t h w", b=len(x))


if __name__ == "__main__":
    main(Config, run)
