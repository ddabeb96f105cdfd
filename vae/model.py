"""IV-VAE: a video is one image frame, then groups of frames. Encode, decode, stream, normalise."""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from engine.pretrained import Pretrained
from vae.blocks import Attention, ResidualBlock
from vae.config import VAEConfig, check_frames
from vae.convs import Cache, Chunk, KTCConv
from vae.decoder import Decoder
from vae.encoder import Encoder
from vae.posterior import DiagonalGaussian


class VideoVAE(nn.Module, Pretrained, library_name="ivvae", tags=["video-vae"]):
    """Keyframe-based video VAE with group causal convolution (Wu et al., CVPR 2025).

    Compresses 1 + 4n frames by 4 x 8 x 8 (`config.temporal_ratio`, `config.spatial_ratio`). Latent
    channels are [keyframe branch | motion branch]. `encode` and `decode` work on raw latents;
    `normalize` and `denormalize` apply the statistics kept in the config.
    """

    config_class = VAEConfig

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        z = config.z_dim
        self.encoder = Encoder(config)
        self.to_moments = nn.Conv2d(2 * z, 2 * z, 1)  # KTC of kernel 1: each branch reads both
        self.from_latent = nn.Conv2d(z, z, 1)  # likewise
        self.decoder = Decoder(config)
        for name, module in self.named_modules():
            if isinstance(module, KTCConv):
                module.name = name
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights that keep the size of activations, with every residual branch at zero.

        Ours: the paper does not state an initialisation from scratch. PyTorch's own makes early
        training several times slower and unstable at higher learning rates.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, ResidualBlock | Attention):
                last = module.conv2 if isinstance(module, ResidualBlock) else module.to_out
                for parameter in last.parameters():
                    nn.init.zeros_(parameter)

    def encode(self, x: Float[Tensor, "b 3 t h w"]) -> DiagonalGaussian:
        """Posterior of a whole video in [-1, 1].

        Returns: Gaussian over `b z 1+(t-1)/4 h/8 w/8`.
        Raises: ValueError if t is not 1 + 4n, h or w no multiple of 8, or x is not `b 3 t h w`
        float.
        """
        self._check_video(x)
        check_frames(x.shape[2], self.config.temporal_ratio)
        return self._encode_chunk(x, first=True, past={})[0]

    def decode(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """Video of a whole raw latent: 1 + 4(t-1) frames, 8 h x 8 w, not clamped to [-1, 1]."""
        self._check_latent(z)
        return self._decode_chunk(z, first=True, past={})[0]

    def decode_branches(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b k 3 t h w"]:
        """Both branches' RGB for every frame, unselected frames included (supplement, Fig. 2)."""
        self._check_latent(z)
        chunk = self._chunk(z, first=True, past={})
        y = self.decoder(self.from_latent(_to_frames(z)), chunk)
        return rearrange(y, "(b t) (k c) h w -> b k c t h w", b=chunk.batch, k=self.config.branches)

    def stream_encode(
        self, chunks: Iterable[Float[Tensor, "b 3 t h w"]]
    ) -> Iterator[DiagonalGaussian]:
        """Encode a video given in pieces; equal to `encode` of the whole, memory flat in its
        length.

        The first piece has 1 + 4n frames, every other a multiple of 4.
        """
        past: Cache = {}
        for i, x in enumerate(chunks):
            self._check_video(x)
            check_frames(x.shape[2] + int(i > 0), self.config.temporal_ratio)
            posterior, past = self._encode_chunk(x, first=i == 0, past=past)
            yield posterior

    def stream_decode(
        self, chunks: Iterable[Float[Tensor, "b z t h w"]]
    ) -> Iterator[Float[Tensor, "b 3 t h w"]]:
        """Decode a latent given in pieces; equal to `decode` of the whole, memory flat."""
        past: Cache = {}
        for i, z in enumerate(chunks):
            self._check_latent(z)
            x, past = self._decode_chunk(z, first=i == 0, past=past)
            yield x

    def forward(
        self, x: Float[Tensor, "b 3 t h w"], noise: Float[Tensor, "b z t h w"]
    ) -> tuple[Float[Tensor, "b 3 t h w"], DiagonalGaussian]:
        """For training: the reconstruction of mean + std * noise, and the posterior."""
        posterior = self.encode(x)
        return self.decode(posterior.at(noise).to(x.dtype)), posterior

    def normalize(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """(z - latent_mean) / latent_std: roughly zero mean, unit variance."""
        return (z - self._statistic("latent_mean", z)) / self._statistic("latent_std", z)

    def denormalize(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """The inverse of `normalize`."""
        return z * self._statistic("latent_std", z) + self._statistic("latent_mean", z)

    def _encode_chunk(
        self, x: Tensor, *, first: bool, past: Cache
    ) -> tuple[DiagonalGaussian, Cache]:
        chunk = self._chunk(x, first=first, past=past)
        y = self.to_moments(self.encoder(_to_frames(x), chunk))
        pattern = "(b t) (k m z) h w -> b (m k z) t h w"  # [mean2D, mean3D, logvar2D, logvar3D]
        moments = rearrange(y, pattern, b=chunk.batch, k=self.config.branches, m=2)
        return DiagonalGaussian.from_moments(moments), chunk.carry

    def _decode_chunk(self, z: Tensor, *, first: bool, past: Cache) -> tuple[Tensor, Cache]:
        chunk = self._chunk(z, first=first, past=past)
        y = self.decoder(self.from_latent(_to_frames(z)), chunk)
        y = rearrange(y, "(b t) (k c) h w -> k b c t h w", b=chunk.batch, k=self.config.branches)
        if self.config.branches == 1:
            return y[0], chunk.carry
        # keyframes come from the 2D branch, the other frames from the 3D branch
        key = chunk.starts(y.shape[3], self.config.temporal_ratio, y.device)
        return torch.where(rearrange(key, "t -> t 1 1"), y[0], y[1]), chunk.carry

    def _chunk(self, x: Tensor, *, first: bool, past: Cache) -> Chunk:
        return Chunk(batch=x.shape[0], image=first, past=past)

    def _statistic(self, name: str, z: Tensor) -> Tensor:
        return torch.tensor(getattr(self.config, name), dtype=z.dtype, device=z.device).view(
            -1, 1, 1, 1
        )

    def _check_video(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(
                f"video of shape {tuple(x.shape)}, {x.dtype}: need b 3 t h w, float in [-1, 1]"
            )
        self.config.latent_shape(1, *x.shape[3:])

    def _check_latent(self, z: Tensor) -> None:
        if z.ndim != 5 or z.shape[1] != self.config.z_dim or not z.is_floating_point():
            raise ValueError(
                f"latent of shape {tuple(z.shape)}, {z.dtype}: "
                f"need b {self.config.z_dim} t h w, float"
            )


class ImageVAE(VideoVAE, library_name="ivvae", tags=["image-vae"]):
    """One branch alone, frame by frame: the image VAE that a video VAE is inflated from.

    Takes `b 3 t h w` like the video VAE; every frame is an image of its own, so any t is allowed.
    Build it from `VAEConfig.image()` of the video VAE it is for.
    """

    def __init__(self, config: VAEConfig):
        if config.branches != 1:
            raise ValueError(
                f"an image VAE has branches=1, got {config.branches}: use config.image()"
            )
        super().__init__(config)


def weights_hash(model: nn.Module) -> str:
    """Hex sha256 over names, types, shapes and values of the state dict, whatever the device."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _to_frames(x: Tensor) -> Tensor:
    frames = rearrange(x, "b c t h w -> (b t) c h w")
    return frames.contiguous(memory_format=torch.channels_last)
