"""Kernels, bytes, FLOP and host-device copies of a pass, and its time on a roofline; no GPU needed.

    python -m benchmarks.traffic                                     # encode and decode 17x720x1280
    python -m benchmarks.traffic --passes '[vae_step]' --height 256 --width 256
    python -m benchmarks.traffic --passes '[latte_step,sampling_step]' --batch_size 32

Ends with exit code 2 where a bar is missed (`missed_bars`). How it counts stands in
`benchmarks.traffic_count` and `traffic_compiled`. Compiled are the encoder or decoder as a whole,
and of training and sampling steps the layers that training compiles. Encoding, decoding and
sampling are counted on "fake" CUDA tensors with weights in bfloat16 (Latte under autocast).
Training steps are counted on fake CPU tensors under bfloat16 autocast with the rules and kernels of
a GPU, because autograd takes no CUDA tensors without a driver; optimizers and averages of weights
are left out.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import grad

from benchmarks.traffic_compiled import count_compiled
from benchmarks.traffic_count import CUDA, Count, CudaRules, EagerCounter
from benchmarks.traffic_count import without_values as place
from common.cli import main
from common.measure import GIGABYTE, LiveMemory
from common.perceptual import PerceptualLoss
from latte import Latte, LatteConfig
from latte.diffusion import GaussianDiffusion
from latte.samplers import denoise, guided
from vae import VAEConfig, VideoVAE
from vae.discriminator import Discriminator, DiscriminatorConfig

Pass = Literal["encode", "decode", "vae_step", "latte_step", "sampling_step"]
Form = Literal["eager", "compiled"]
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Count kernels, bytes, FLOP and host-device copies of a pass."""

    passes: tuple[Pass, ...] = ("encode", "decode")
    """encode and decode a video; vae_step: forward and backward pass of the VAE with LPIPS and GAN,
    and of the discriminator; latte_step: loss and gradients; sampling_step: a guided DDIM step."""
    forms: tuple[Form, ...] = ("eager", "compiled")
    """Each operation a kernel, or fused by inductor."""
    dim: int = 64
    """Channels of one branch of the VAE at the first level."""
    z_dim: int = 16
    """Latent channels of the VAE."""
    frames: int = 17
    """Frames of a video, 1 + 4n."""
    height: int = 720
    """Pixels."""
    width: int = 1280
    """Pixels."""
    batch_size: int = 1
    """Videos or clips at once."""
    size: Literal["S", "B", "L", "XL"] = "XL"
    """Latte, with patch size 2 and 101 classes."""
    latent_frames: int = 5
    """Of Latte's clips."""
    latent_side: int = 32
    """Rows and columns of Latte's latents, of 4 channels."""
    tflops: float = 790.0
    """Rate of matrix products, TFLOP/s."""
    bandwidth: float = 3.0
    """Rate of memory, TB/s."""


BEFORE: dict[tuple[Pass, int, int], tuple[int, float]] = {
    ("encode", 720, 1280): (448, 745e9),
    ("decode", 720, 1280): (674, 1183e9),
    ("vae_step", 256, 256): (5709, 762e9),
}
"""Kernels and bytes of a pass at a height and width before kernels were fused: eager, one video of
17 frames, dim 64, z_dim 16."""
SHARES: dict[Pass, float] = {"encode": 0.45, "decode": 0.45, "vae_step": 0.4}
"""Largest share of those bytes that a compiled pass may move; of the kernels it is half."""


def run(config: Traffic) -> None:
    """Print one line for each pass and form. Raises: ValueError if a bar is missed."""
    columns = ("pass", "form", "kernels", "read, GB", "written, GB", "TFLOP", "copies")
    columns += ("roofline, s", "peak, GB")
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    missed = []
    for name in config.passes:
        counts: dict[Form, Count] = {}
        for form in config.forms:
            count, peak = measure(config, name, compiled=form == "compiled")
            counts[form] = count
            print(
                f"| {name} | {form} | {count.kernels} | {count.read / 1e9:.1f} | "
                f"{count.written / 1e9:.1f} | {count.flop / 1e12:.1f} | {count.copies} | "
                f"{count.seconds:.3f} | {f'{peak / GIGABYTE:.1f}' if form == 'eager' else ''} |"
            )
        missed += missed_bars(config, name, counts)
    if missed:
        raise ValueError("; ".join(missed))


def missed_bars(config: Traffic, name: Pass, counts: dict[Form, Count]) -> list[str]:
    """What a pass does more of than it may: operations when compiled, and where it is known what
    it did before, kernels and bytes.
    """
    if "compiled" not in counts:
        return []
    compiled, missed = counts["compiled"], []
    if "eager" in counts and compiled.flop != counts["eager"].flop:
        missed.append(f"{name}: {compiled.flop} FLOP compiled, {counts['eager'].flop} eager")
    before = BEFORE.get((name, config.height, config.width))
    sizes = (config.dim, config.z_dim, config.frames, config.batch_size)
    if before is not None and sizes == (64, 16, 17, 1):
        kernels, moved = before
        if compiled.kernels > 0.5 * kernels:
            missed.append(f"{name}: {compiled.kernels} kernels are over half of {kernels}")
        if compiled.bytes > SHARES[name] * moved:
            share = f"{SHARES[name]} of {moved / 1e9:.0f} GB"
            missed.append(f"{name}: {compiled.bytes / 1e9:.0f} GB are over {share}")
    return missed


def measure(config: Traffic, name: Pass, *, compiled: bool) -> tuple[Count, int]:
    """The count of a pass, and in eager mode the most bytes of all tensors at once but for weights
    and inputs.
    """
    count = Count(config.tflops * 1e12, config.bandwidth * 1e12)
    learns = name.endswith("_step") and name != "sampling_step"
    fake, device = FakeTensorMode(), CPU if learns else CUDA
    with ExitStack() as stack:
        stack.enter_context(fake)
        if learns:  # on CPU tensors, with a GPU's kernels
            stack.enter_context(patch("vae.norms._has_kernel", lambda x: x.dtype != torch.float64))
        with EagerCounter(Count()):  # which answers what the host asks of values
            modules, step = PASSES[name](config, device)
        if compiled:
            count_compiled(modules, count, fake)
        stack.enter_context(torch.set_grad_enabled(learns))
        memory = stack.enter_context(LiveMemory())
        stack.enter_context(EagerCounter(count))
        stack.enter_context(CudaRules())
        step()
    return count, memory.peak


Prepared = tuple[list[nn.Module], Callable[[], object]]
"""What is compiled, each as one graph, and the pass."""


def encode(config: Traffic, device: torch.device) -> Prepared:
    """One chunk that is the whole video."""
    model = build_vae(config, device, torch.bfloat16)
    x = torch.empty(config.batch_size, 3, config.frames, config.height, config.width, device=device)
    x = x.bfloat16()
    return [model.encoder], lambda: model.encode_step(x, last=True)


def decode(config: Traffic, device: torch.device) -> Prepared:
    """One chunk that is the whole latent."""
    model = build_vae(config, device, torch.bfloat16)
    shape = model.config.latent_shape(config.frames, config.height, config.width)
    z = torch.empty(config.batch_size, *shape, device=device, dtype=torch.bfloat16)
    return [model.decoder], lambda: model.decode_step(z, last=True)


def vae_step(config: Traffic, device: torch.device) -> Prepared:
    """As `vae.adversarial.AdversarialLoss` runs it once the GAN has started."""
    model = build_vae(config, device, torch.float32)
    lpips = PerceptualLoss("vgg", None)  # whose values do not matter
    place(lpips, device, torch.float32)
    place(lpips.lpips.net, device, torch.bfloat16)  # as `keep_bf16_weights`
    discriminator = Discriminator(DiscriminatorConfig())
    place(discriminator, device, torch.float32)
    video = torch.empty(
        config.batch_size, 3, config.frames, config.height, config.width, device=device
    )
    noise = torch.empty(
        config.batch_size, *model.config.latent_shape(*video.shape[2:]), device=device
    )

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            reconstruction, posterior = model(video, noise)
            leaf = reconstruction.detach().float().requires_grad_()

            # Gradients of the reconstruction terms and of the GAN at the reconstruction
            loss = (leaf - video).abs().mean() + lpips(leaf, video).mean()
            gradients = list(grad(loss, leaf))
            discriminator.requires_grad_(False)
            gradients += grad(-discriminator(leaf).float().mean(), leaf)
            discriminator.requires_grad_(True)

            # Their norms at the last layer, then both through the whole model
            for gradient in gradients:
                grad(reconstruction.float(), model.last_layer(), gradient, retain_graph=True)
            path = (reconstruction.float() * (gradients[0] + gradients[1])).sum()
            (path + posterior.kl().mean()).backward()

            # The discriminator's own step
            real, generated = discriminator(torch.cat([video, leaf.detach()])).float().chunk(2)
            (F.relu(1 - real).mean() + F.relu(1 + generated).mean()).backward()

    return [*model.layers()], step


def latte_step(config: Traffic, device: torch.device) -> Prepared:
    """Loss and gradients of one batch."""
    model, x, y = build_latte(config, device)
    diffusion, t = GaussianDiffusion(), torch.zeros_like(y)
    noise = torch.empty_like(x)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            losses = diffusion.training_loss(lambda x, t: model(x, t, y), x, t, noise)
        losses["loss"].mean().backward()

    return [*model.blocks], step


def sampling_step(config: Traffic, device: torch.device) -> Prepared:
    """One DDIM step with guidance."""
    model, x, y = build_latte(config, device)
    model_fn, diffusion = guided(model, y, 7.0), GaussianDiffusion(timesteps=[500])

    def step() -> None:
        torch.set_autocast_enabled("cuda", True)  # torch.autocast refuses without a driver
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            denoise(model_fn, diffusion, x, torch.empty_like, method="ddim")  # type: ignore[arg-type]
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()

    return [*model.blocks], step


PASSES: dict[Pass, Callable[[Traffic, torch.device], Prepared]] = {
    "encode": encode,
    "decode": decode,
    "vae_step": vae_step,
    "latte_step": latte_step,
    "sampling_step": sampling_step,
}


def build_vae(config: Traffic, device: torch.device, dtype: torch.dtype) -> VideoVAE:
    """IV-VAE of the config's sizes on the device, in `dtype`."""
    model = VideoVAE(VAEConfig(dim=config.dim, z_dim=config.z_dim))
    place(model, device, dtype)
    return model


def build_latte(config: Traffic, device: torch.device) -> tuple[Latte, Tensor, Tensor]:
    """The model, latents and labels."""
    frames, side = config.latent_frames, config.latent_side
    shape = {"in_channels": 4, "num_frames": frames, "height": side, "width": side}
    model = Latte(LatteConfig.preset(config.size, **shape, num_classes=101))
    place(model, device, torch.float32)
    x = torch.empty(config.batch_size, 4, frames, side, side, device=device)
    return model, x, torch.empty(config.batch_size, device=device, dtype=torch.int64)


if __name__ == "__main__":
    main(Traffic, run)
