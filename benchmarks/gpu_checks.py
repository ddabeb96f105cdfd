"""The checks of `benchmarks.gpu_acceptance` that run in its own process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_commands
from benchmarks.gpu_models import (
    Machine,
    Method,
    distance,
    draw,
    gradients,
    make_latte,
    make_vae,
    relative,
    seconds,
    video,
)
from benchmarks.shared import scrambled
from benchmarks.vae_plain import Plain
from common.measure import peak_memory_bytes, reset_peak_memory
from engine.compilation import compile_layers, compiled_graphs
from eval.features.extractors import full_precision
from eval.features.i3d import InceptionI3D
from eval.metrics.reconstruction import ssim
from latte.diffusion import GaussianDiffusion
from latte.dpm_solver import dpm_solver
from latte.flow import integrate
from latte.samplers import FLOW_METHODS, SamplerConfig, denoise, sample
from vae.tiling import Tiling

METHODS: tuple[Method, ...] = get_args(Method)
H100_BF16 = 989e12
"""Dense bf16 FLOP/s that the vendor states for an H100 SXM; MFU is a share of it."""


@dataclass(frozen=True)
class Check:
    """One check; `limits` are the most that its values of these names may be."""

    run: Callable[[Machine], dict[str, Any]]
    limits: dict[str, float] = field(default_factory=dict)
    needs_cuda: bool = False


def rates(machine: Machine) -> dict[str, Any]:
    """Measured bf16 matrix products, FLOP/s, and copies, bytes/s read and written."""
    size = 256 if machine.is_tiny else 8192
    a = torch.randn(size, size, device=machine.device, dtype=torch.bfloat16)
    products = 2 * size**3 / seconds(lambda: a @ a, machine, repeats=10)
    block = torch.empty(1 << (20 if machine.is_tiny else 31), dtype=torch.uint8, device=a.device)
    copies = 2 * block.nbytes / seconds(block.clone, machine, repeats=5)
    return {"matmul_tflops": products / 1e12, "copy_tb_per_s": copies / 1e12}


def parity_float32(machine: Machine) -> dict[str, Any]:
    """Relative distance of the device's float32 results from the CPU's."""
    with full_precision(machine.device):
        vae, clip = make_vae(machine, dim=16), video(machine, 5, 32, 32)
        latte = make_latte(machine, "S")
        z = torch.randn(2, 4, 3, 8, 8)
        t = torch.tensor([3, 700])
        values = {
            "vae": distance(machine, vae, lambda m, x: m(x, x.new_zeros(1))[0], clip),
            "vae_gradients": distance(machine, vae, gradients, clip),
            "latte": distance(machine, latte, lambda m, x: m(x, t.to(x.device)), z),
        }
        flow = make_latte(machine, "S", learn_sigma=False)
        classes = make_latte(machine, "S", num_classes=3)
        flow_classes = make_latte(machine, "S", learn_sigma=False, num_classes=3)
        for method in METHODS:
            model, guided = (flow, flow_classes) if method in FLOW_METHODS else (latte, classes)
            call = partial(draw, method=method)
            values[method] = distance(machine, model, call, z)
            values[f"{method}_guided"] = distance(machine, guided, call, z)
        i3d = scrambled(InceptionI3D()).eval()
        values["i3d"] = distance(machine, i3d, lambda m, x: m(x), video(machine, 9, 224, 224))
        pair = torch.rand(2, 1, 3, 5, 64, 64) * 2 - 1
        values["ssim"] = distance(machine, nn.Identity(), lambda _, x: ssim(x[0], x[1]), pair)
    return {**values, "largest": max(values.values())}


def parity_bfloat16(machine: Machine) -> dict[str, Any]:
    """Relative distance of bf16 results from float32 on the device."""
    vae, clip = make_vae(machine, dim=16), video(machine, 9, 64, 64).to(machine.device)
    latte, z = make_latte(machine, "S"), torch.randn(2, 4, 3, 8, 8, device=machine.device)
    t = torch.tensor([3, 700], device=machine.device)
    values = {}
    calls: dict[str, Callable[[], Tensor]] = {
        "vae": lambda: vae.reconstruct(clip),
        "latte": lambda: latte(z, t),
    }
    for name, call in calls.items():
        with torch.no_grad():
            exact = call()
            with torch.autocast(machine.device.type, torch.bfloat16):
                values[name] = relative(call(), exact)
    return {**values, "largest": max(values.values())}


def parts_equal_the_whole(machine: Machine) -> dict[str, Any]:
    """Chunks and streams against the whole in float32; tiles, where attention reaches past them."""
    with full_precision(machine.device), torch.no_grad():
        vae, clip = make_vae(machine, dim=16), video(machine, 17, 64, 64).to(machine.device)
        mean = vae.encode(clip).mean
        chunked = vae.encode(clip, chunk_groups=1).mean
        frames = torch.cat(list(vae.stream_decode(mean.split(1, dim=2))), dim=2)
        whole = vae.decode(mean)
        tiles = vae.decode(mean, tiling=Tiling(height=48, width=48, context=8, blend=8))
    values = {"chunks": relative(chunked, mean), "stream": relative(frames, whole)}
    return {**values, "largest": max(values.values()), "tiles": relative(tiles, whole)}


def large_tensors(machine: Machine) -> dict[str, Any]:
    """A clip whose maps would pass 2^31 elements if all its groups ran at once."""
    vae = make_vae(machine, dim=64).bfloat16()
    clip = video(machine, 33, 1088, 1920).to(machine.device, torch.bfloat16)
    with torch.no_grad():
        default = vae.encode(clip).mean
        stepped = vae.encode(clip, chunk_groups=1).mean
    return {"difference": relative(default, stepped)}


def compilation(machine: Machine) -> dict[str, Any]:
    """Layers of a VAE and of Latte compiled as in training, on several sizes, with gradients and
    without, against eager ones. A recompile limit that is reached is an error.
    """
    vae, latte = make_vae(machine, dim=16), make_latte(machine, "S")
    backend, layers = "inductor", [*vae.layers(), *latte.blocks]
    sizes, batches = [(1, 32, 32), (5, 32, 32), (5, 16, 32), (9, 32, 32)], [1, 2, 4]
    if machine.is_tiny:
        backend, layers, sizes, batches = "eager", layers[::4], sizes[:2], batches[:2]
    clips = [video(machine, *size).to(machine.device) for size in sizes]
    latents = [torch.randn(b, 4, 3, 8, 8, device=machine.device) for b in batches]
    times = [torch.arange(len(z), device=machine.device) * 200 + 3 for z in latents]

    def results() -> list[Tensor]:
        found = [gradients(vae, clip) for clip in clips]
        with torch.no_grad():
            found += [vae.reconstruct(clip) for clip in clips]
            return found + [latte(z, t) for z, t in zip(latents, times, strict=True)]

    with full_precision(machine.device):
        eager = results()
        torch._dynamo.reset()
        before = compiled_graphs()
        compile_layers(layers, backend)
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            compiled = results()
    torch._dynamo.reset()
    found = [relative(x, y) for x, y in zip(compiled, eager, strict=True)]
    return {"difference": max(found), "graphs": compiled_graphs() - before}


def no_hidden_waits(machine: Machine) -> dict[str, Any]:
    """One step of everything with synchronizing calls forbidden."""
    calls = hot_calls(machine)
    for call in calls.values():
        call()  # what is made once, such as tables, waits
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call in calls.values():
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"calls": len(calls)}


def graph_capture(machine: Machine) -> dict[str, Any]:
    """The same calls captured in CUDA graphs and replayed."""
    values = {}
    for name, call in hot_calls(machine).items():
        expected = call().clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        graph.replay()
        torch.cuda.synchronize()
        values[name] = relative(result, expected)
    return {**values, "largest": max(values.values())}


def vae_throughput(machine: Machine) -> dict[str, Any]:
    """Seconds to encode and decode, and times as fast as the plain form in the same run."""
    values: dict[str, Any] = {}
    sizes = [(5, 16, 16)] if machine.is_tiny else [(17, 256, 256), (17, 720, 1280)]
    vae = make_vae(machine, dim=64, z_dim=16)
    plain = Plain(vae)
    for size in sizes:
        clip = video(machine, *size).to(machine.device)
        name = "x".join(map(str, size))
        with torch.no_grad(), torch.autocast(machine.device.type, torch.bfloat16):
            z = vae.encode(clip).mean
            calls = {
                "encode": (partial(vae.encode, clip), partial(plain.encode, clip)),
                "decode": (partial(vae.decode, z), partial(plain.decode, z)),
            }
            for way, (ours, theirs) in calls.items():
                taken = seconds(ours, machine)
                values[f"{way}_{name}"] = taken
                values[f"{way}_{name}_times_as_fast"] = seconds(theirs, machine) / taken
    return values


def latte_training(machine: Machine) -> dict[str, Any]:
    """Seconds, memory and share of the peak rate of a training step of Latte-XL/2, bf16."""
    latte = make_latte(machine, "XL", 5, 32).train()
    process, c = GaussianDiffusion(), latte.config

    def make_step(batch: int) -> Callable[[], None]:
        shape = batch, c.in_channels, c.num_frames, c.height, c.width
        x, noise = torch.randn(2, *shape, device=machine.device)
        t = torch.randint(0, 1000, (batch,), device=machine.device)

        def step() -> None:
            latte.zero_grad(set_to_none=True)
            with torch.autocast(machine.device.type, torch.bfloat16):
                loss = process.training_loss(latte, x, t, noise)
            loss["loss"].mean().backward()

        return step

    with FlopCounterMode(display=False) as counter:
        make_step(1)()
    if machine.device.type == "cuda":  # as training does
        compile_layers([*latte.blocks])
    values: dict[str, Any] = {}
    for batch in (1, 2) if machine.is_tiny else (8, 16, 32):
        reset_peak_memory(machine.device)
        taken = seconds(make_step(batch), machine)
        values |= {
            f"seconds_{batch}": taken,
            f"peak_gb_{batch}": peak_memory_bytes(machine.device) / 1e9,
            f"unused_rate_{batch}": 1 - batch * counter.get_total_flops() / taken / H100_BF16,
        }
    return values


def sampling(machine: Machine) -> dict[str, Any]:
    """Seconds for 2,048 clips of Latte-XL at 250 steps, from ten steps of one batch, bf16."""
    latte = make_latte(machine, "XL", 5, 32)
    config, clips = SamplerConfig(method="ddim", steps=2 if machine.is_tiny else 10), 8
    process = GaussianDiffusion()

    def call() -> Tensor:
        with torch.autocast(machine.device.type, torch.bfloat16):
            return sample(latte, process, config, indices=range(clips), seed=0)

    taken = seconds(call, machine, repeats=1)
    return {"hours_2048_clips": taken / config.steps * 250 / clips * 2048 / 3600}


CHECKS = {
    "rates": Check(rates),
    "parity_float32": Check(parity_float32, {"largest": 1e-4}),
    "parity_bfloat16": Check(parity_bfloat16, {"largest": 0.04}),
    "parts_equal_the_whole": Check(parts_equal_the_whole, {"largest": 1e-5}),
    "large_tensors": Check(large_tensors, {"difference": 0.01}, needs_cuda=True),
    "compilation": Check(compilation, {"difference": 1e-4}),
    "no_hidden_waits": Check(no_hidden_waits, needs_cuda=True),
    "graph_capture": Check(graph_capture, {"largest": 1e-5}, needs_cuda=True),
    "vae_throughput": Check(
        vae_throughput, {"encode_17x720x1280": 0.30, "decode_17x720x1280": 0.46}
    ),
    "chain": Check(gpu_commands.chain),
    "vae_training": Check(gpu_commands.vae_training, {"step_seconds": 0.20}),
    "latte_training": Check(latte_training, {"seconds_32": 0.33, "unused_rate_32": 0.65}),
    "sampling": Check(sampling, {"hours_2048_clips": 0.6}),
    "memory_estimates": Check(gpu_commands.memory_estimates, {"excess_gb": 0}, needs_cuda=True),
    "thirty_steps": Check(gpu_commands.thirty_steps),
    "stop_and_resume": Check(gpu_commands.stop_and_resume),
    "launchers": Check(gpu_commands.launchers),
    "out_of_memory": Check(gpu_commands.out_of_memory, needs_cuda=True),
    "pytest_gpu": Check(gpu_commands.pytest_gpu, needs_cuda=True),
}


def hot_calls(machine: Machine) -> dict[str, Callable[[], Tensor]]:
    """What has to run without waiting: one step of the VAE, of Latte and of each sampler."""
    vae, clip = make_vae(machine, dim=16), video(machine, 5, 32, 32).to(machine.device)
    latte, z = make_latte(machine, "S"), torch.randn(2, 4, 3, 8, 8, device=machine.device)
    t = torch.tensor([3, 700], device=machine.device)
    latent = vae.encode(clip).mean.clone()
    spaced, whole = GaussianDiffusion(timesteps=[0, 500]), GaussianDiffusion()
    flow = make_latte(machine, "S", learn_sigma=False)

    calls: dict[str, Callable[[], Tensor]] = {
        "encode_step": lambda: vae.encode_step(clip, None)[0],
        "decode_step": lambda: vae.decode_step(latent, None)[0],
        "forward": lambda: vae(clip, latent)[0],
        "latte": lambda: latte(z, t),
        "ddpm": lambda: denoise(latte, spaced, z, lambda _: z, method="ddpm"),
        "ddim": lambda: denoise(latte, spaced, z, lambda _: z, method="ddim"),
        "dpm_solver": lambda: dpm_solver(latte, whole, z, 2),
        "euler": lambda: integrate(flow, z, 2, method="euler"),
        "heun": lambda: integrate(flow, z, 2, method="heun"),
    }
    return {name: torch.no_grad()(call) for name, call in calls.items()}
