"""IV-VAE written out plainly with the weights of our model: what ours is timed and checked against.

It takes the image frame and then one group of frames at a time through the network, as the released
code is described: a Conv2d beside a padded Conv3d, branches one after the other, pixels and frames
repeated before they are convolved, results appended group by group. Nothing is left out.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vae import VideoVAE
from vae.blocks import Attention, NormSiLU, ResidualBlock, RMSNorm
from vae.convs import KTCConv
from vae.resample import Downsample, Upsample


class Plain:
    """The released IV-VAE written out: `b c t h w`, group by group, with `model`'s weights."""

    def __init__(self, model: VideoVAE):
        self.model = model

    def encode(self, x: Tensor) -> Tensor:
        """Moments, as `VideoVAE.encode_step` gives them."""
        encoder, past, out = self.model.encoder, {}, x[:, :, :0]
        for group in x.tensor_split(tuple(range(1, x.shape[2], 4)), dim=2):
            y = self.layer(encoder.conv_in, group, past)
            for layer in (*encoder.layers, *encoder.middle):
                y = self.layer(layer, y, past)
            y = self.layer(encoder.norm_out, y, past)
            out = joined(out, frames(encoder.head, y))
        y = frames(self.model.to_moments, out)
        return rearrange(y, "b (k m z) t h w -> b (m k z) t h w", k=2, m=2)

    def decode(self, z: Tensor) -> Tensor:
        """Frames, as `VideoVAE.decode_step` gives them."""
        decoder, past, out = self.model.decoder, {}, z[:, :, :0]
        z = frames(self.model.from_latent, z)
        for group in z.split(1, dim=2):
            y = self.layer(decoder.conv_in, group, past)
            for layer in (*decoder.middle, *decoder.layers):
                y = self.layer(layer, y, past)
            y = self.layer(decoder.norm_out, y, past)
            keyframe, motion = self.layer(decoder.head, y, past).chunk(2, dim=1)
            out = joined(out, torch.cat([keyframe[:, :, :1], motion[:, :, 1:]], dim=2))
        return out

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
        """Conv2d beside Conv3d, `b c t h w` -> `b c' t h w`."""
        before = past.get(layer, x[:, :, :1])
        past[layer] = x[:, :, -1:]
        padded = F.pad(torch.cat([before, x, torch.zeros_like(before)], dim=2), (1, 1, 1, 1))
        motion = F.conv3d(padded, layer.motion.weight, layer.motion.bias)
        return torch.cat([frames(layer.keyframe, x), motion], dim=1)

    def attention(self, layer: Attention, x: Tensor, past: dict[nn.Module, Tensor]) -> Tensor:
        """Attention of each half of the channels on its own, `b c t h w`, with the residual."""
        y = rearrange(self.layer(layer.norm, x, past), "b c t h w -> (b t) c h w")
        outputs = []
        for half, to_qkv, to_out in zip(
            y.chunk(2, dim=1), halves_of(layer.to_qkv), halves_of(layer.to_out), strict=True
        ):
            qkv = rearrange(F.conv2d(half, *to_qkv), "n (q c) h w -> q n 1 (h w) c", q=3)
            q, k, v = qkv.contiguous()
            out = F.scaled_dot_product_attention(q, k, v)
            out = rearrange(out, "n 1 (h w) c -> n c h w", h=y.shape[2])
            outputs.append(F.conv2d(out, *to_out))
        return x + rearrange(torch.cat(outputs, dim=1), "(b t) c h w -> b c t h w", b=len(x))

    def downsample(
        self, layer: Downsample, x: Tensor, later: bool, past: dict[nn.Module, Tensor]
    ) -> Tensor:
        """`b c t h w` -> `b c t' h/2 w/2`; frames are halved in groups (`later`) alone."""
        past[layer] = torch.ones(1)
        halves = []
        for half, (w, b) in zip(x.chunk(2, dim=1), halves_of(layer.spatial), strict=True):
            padded = frames(partial(F.pad, pad=(0, 1, 0, 1)), half)
            halves.append(frames(partial(F.conv2d, weight=w, bias=b, stride=2), padded))
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
        """`b c t h w` -> `b c/2 t' 2h 2w`; frames are doubled in groups (`later`) alone."""
        past[layer] = torch.ones(1)
        keyframe, motion = x.chunk(2, dim=1)
        if layer.temporal is not None and later:
            keyframe = keyframe.repeat_interleave(2, dim=2)
            both = F.conv3d(motion, layer.temporal.weight, layer.temporal.bias)
            motion = rearrange(both, "b (k c) t h w -> b c (t k) h w", k=2)
        outputs = []
        for half, (w, b) in zip((keyframe, motion), halves_of(layer.spatial), strict=True):
            large = frames(partial(F.interpolate, scale_factor=2.0, mode="nearest-exact"), half)
            outputs.append(frames(partial(F.conv2d, weight=w, bias=b, padding=1), large))
        return torch.cat(outputs, dim=1)


def joined(before: Tensor, part: Tensor) -> Tensor:
    """The frames so far and the next ones; nothing so far may have other sizes."""
    return torch.cat([before, part], dim=2) if before.numel() else part


def halves_of(conv: nn.Conv2d) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of each branch."""
    assert conv.bias is not None
    return zip(conv.weight.chunk(2), conv.bias.chunk(2), strict=True)


def frames(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A 2D layer on every frame."""
    y = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(y, "(b t) c h w -> b c t h w", b=len(x))
