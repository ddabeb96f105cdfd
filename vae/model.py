"""IV-VAE: a video is one image frame, then groups of frames. Encode, decode, stream."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vae import inputs
from vae.base import VideoAutoencoder
from vae.config import VAEConfig
from vae.convs import Cache, Cached, Chunk, lay_out_weights
from vae.decoder import Decoder
from vae.encoder import Encoder
from vae.memory import groups_that_fit
from vae.posterior import DiagonalGaussian, start_narrow
from vae.streaming import Step, run, run_whole
from vae.tiling import TiledStep, Tiling


class VideoVAE(VideoAutoencoder, library_name="ivvae", tags=["video-vae"]):
    """Keyframe-based video VAE with group causal convolution (Wu et al., CVPR 2025), or one of the
    paper's ablation rows (`VAEConfig.preset`).

    Compresses 1 + 4n frames by 4 x 8 x 8 (`config.temporal_ratio`, `config.spatial_ratio`). Latent
    channels are [keyframe branch | motion branch]. What the network computes is the same, up to
    rounding, however a video is cut into chunks of frame groups.
    """

    config: VAEConfig
    config_class = VAEConfig
    title = "IV-VAE"
    encoder_modules = ("encoder", "to_moments")
    last_module = "decoder.head"

    def __init__(self, config: VAEConfig):
        super().__init__(config)
        z = config.z_dim
        self.encoder = Encoder(config)
        self.to_moments = nn.Conv2d(2 * z, 2 * z, 1)  # KTC of kernel 1: each branch reads both
        self.from_latent = nn.Conv2d(z, z, 1)  # likewise
        self.decoder = Decoder(config)
        for name, module in self.named_modules():
            if isinstance(module, Cached):
                module.name = name
        self.reset_parameters()
        lay_out_weights(self)

    def reset_parameters(self) -> None:
        """As for all VAEs; and draws of the posterior stay near its mean at first."""
        super().reset_parameters()
        pattern, k = "(k m z) ... -> k m z ...", self.config.branches
        with torch.no_grad():
            weight, bias = (rearrange(p, pattern, k=k, m=2) for p in self.to_moments.parameters())
            start_narrow(weight[:, 1], bias[:, 1])

    def encode(
        self,
        x: Float[Tensor, "b 3 t h w"],
        *,
        pad: bool = False,
        chunk_groups: int | None = None,
        tiling: Tiling | None = None,
    ) -> DiagonalGaussian:
        """Posterior of a whole video in [-1, 1].

        Args:
            x: the video; a little beyond [-1, 1], as resizing makes it, is taken
                (`inputs.PIXEL_LIMIT`).
            pad: take any t, h and w: repeat the edges up to the next allowed size.
                `decode(..., size=x.shape[2:])` crops back.
            chunk_groups: frame groups to run at once; trades memory for speed, the result is the
                same up to rounding. Default: all where gradients are needed, else as many as
                `memory.MEMORY_FRACTION` of the free memory holds. Halved where memory runs out.
            tiling: run frames tile by tile. Changes the result; see `vae.tiling`.
        Returns: Gaussian over `b z 1+(t-1)/4 h/8 w/8`.
        Raises: ValueError if t is not 1 + 4n, h or w no multiple of 8, or x is not `b 3 t h w`
            float, is on another device, not finite or not in [-1, 1].
        """
        x = self._admit_video(x)
        if pad:
            x = inputs.pad(x, self.config)
        inputs.check_size(x, self.config)
        groups = self._chunk_groups(x, x.shape[2:], chunk_groups, tiling)
        step, ratio = self._encode_step(tiling), self.config.temporal_ratio
        moments = run_whole(step, x, groups, ratio, self.config.latent_frames(x.shape[2]))
        return DiagonalGaussian.from_moments(moments)

    def decode(
        self,
        z: Float[Tensor, "b z t h w"],
        *,
        size: Sequence[int] | None = None,
        chunk_groups: int | None = None,
        tiling: Tiling | None = None,
    ) -> Float[Tensor, "b 3 t h w"]:
        """Video of a whole raw latent: 1 + 4(t-1) frames, 8 h x 8 w, not clamped to [-1, 1].

        Args:
            z: the latent, not normalized.
            size: frames, height and width to crop to, of a video encoded with `pad=True`.
            chunk_groups: as for `encode`.
            tiling: as for `encode`.
        Raises: ValueError if z is not `b z t h w` float, is on another device or not finite, or no
            video of `size` has such a latent.
        """
        z = self._admit_latent(z)
        whole = self.config.decoded_size(z)
        if size is not None:
            inputs.check_crop(size, whole, self.config)
        groups = self._chunk_groups(z, whole, chunk_groups, tiling)
        y = run_whole(self._decode_step(tiling), z, groups, 1, whole[0])
        if size is None:
            return y
        t, h, w = size
        return y[:, :, :t, :h, :w]

    def reconstruct(
        self,
        x: Float[Tensor, "b 3 t h w"],
        *,
        pad: bool = False,
        chunk_groups: int | None = None,
        tiling: Tiling | None = None,
    ) -> Float[Tensor, "b 3 t h w"]:
        """The decoded mode of the posterior, of x's size, not clamped; arguments as for `encode`.

        Raises:
            ValueError: as `encode`.
        """
        z = self.encode(x, pad=pad, chunk_groups=chunk_groups, tiling=tiling).mode()
        return self.decode(z, size=x.shape[2:], chunk_groups=chunk_groups, tiling=tiling)

    def decode_branches(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b k 3 t h w"]:
        """Both branches' RGB for every frame, unselected frames included (supplement, Fig. 2).

        `visual.unselected_frames` picks those that `decode` leaves out.
        """
        z = self._admit_latent(z)
        chunk = _chunk(z, None, last=True)
        y = self.decoder(self.from_latent(_to_frames(z)), chunk)
        return rearrange(
            y, "(b t) (k c) h w -> b k c t h w", b=chunk.batch_size, k=self.config.branches
        )

    @torch.no_grad()
    def stream_encode(
        self, chunks: Iterable[Float[Tensor, "b 3 t h w"]], *, tiling: Tiling | None = None
    ) -> Iterator[DiagonalGaussian]:
        """Encode a video given in chunks, without gradients, in memory that is flat in its length.

        The posteriors are those of the whole. The first chunk has 1 + 4n frames, every other a
        multiple of 4.
        Raises: ValueError, naming the chunk, if its frames are no whole groups or its size differs.
        """
        admitted = map(self._admit_video, chunks)
        checked = inputs.checked_chunks(admitted, self.config, latent=False)
        for moments in run(self._encode_step(tiling), checked):
            yield DiagonalGaussian.from_moments(moments)

    @torch.no_grad()
    def stream_decode(
        self, chunks: Iterable[Float[Tensor, "b z t h w"]], *, tiling: Tiling | None = None
    ) -> Iterator[Float[Tensor, "b 3 t h w"]]:
        """Decode a latent given in chunks of one frame or more, without gradients, in memory that
        is flat in its length. The frames are those of the whole.
        """
        admitted = map(self._admit_latent, chunks)
        checked = inputs.checked_chunks(admitted, self.config, latent=True)
        yield from run(self._decode_step(tiling), checked)

    def decode_parts(
        self, z: Float[Tensor, "b z t h w"], frames: int | None = None
    ) -> Iterator[Float[Tensor, "b 3 t h w"]]:
        """The frames of each group, in memory that is flat in their number."""
        return self.stream_decode(z.split(1, dim=2))

    def encode_step(
        self, x: Float[Tensor, "b 3 t h w"], past: Cache | None = None, last: bool = False
    ) -> tuple[Float[Tensor, "b z2 t h w"], Cache]:
        """Moments [mean | log-variance] of a run of whole groups, and the `past` of the next step.

        Checks nothing.

        Args:
            x: pixels in [-1, 1]; 1 + temporal_ratio * n frames in a video's first step, whose first
                one is the image frame, temporal_ratio * n frames in later ones.
            past: cache that the step before returned; None in the first.
            last: no step follows, so nothing is kept.
        """
        chunk = _chunk(x, past, last)
        y = self.to_moments(self.encoder(_to_frames(x), chunk))
        pattern = "(b t) (k m z) h w -> b (m k z) t h w"  # [mean2D, mean3D, logvar2D, logvar3D]
        moments = rearrange(y, pattern, b=chunk.batch_size, k=self.config.branches, m=2)
        return moments, chunk.carry

    def decode_step(
        self, z: Float[Tensor, "b z t h w"], past: Cache | None = None, last: bool = False
    ) -> tuple[Float[Tensor, "b 3 t h w"], Cache]:
        """Frames of a run of latents, not clamped, and the `past` of the next step.

        As `encode_step`, of 1 + n latent frames in a video's first step and n in later ones.
        """
        chunk = _chunk(z, past, last)
        y = self.decoder(self.from_latent(_to_frames(z)), chunk)
        y = rearrange(
            y, "(b t) (k c) h w -> k b c t h w", b=chunk.batch_size, k=self.config.branches
        )
        if self.config.branches == 1:
            return y[0], chunk.carry
        # keyframes come from the 2D branch, the other frames from the 3D branch
        key = chunk.starts(y.shape[3], self.config.temporal_ratio, y.device)
        return torch.where(rearrange(key, "t -> t 1 1"), y[0], y[1]), chunk.carry

    def moments(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b z2 t h w"]:
        return self.encode_step(x, last=True)[0]

    def frames(self, z: Float[Tensor, "b z t h w"], count: int) -> Float[Tensor, "b 3 t h w"]:
        return self.decode_step(z, last=True)[0]

    def _encode_step(self, tiling: Tiling | None) -> Step:
        return TiledStep.wrap(self.encode_step, tiling, self.config, latent=False)

    def _decode_step(self, tiling: Tiling | None) -> Step:
        return TiledStep.wrap(self.decode_step, tiling, self.config, latent=True)

    def _chunk_groups(
        self, x: Tensor, size: Sequence[int], wanted: int | None, tiling: Tiling | None
    ) -> int:
        """Frame groups to run at once, of a video of `size` in pixels given as video or latent."""
        inputs.check_chunk_groups(wanted)
        if wanted is not None:
            return wanted
        learning = torch.is_grad_enabled() and (
            x.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        )
        if learning or x.is_meta or torch.compiler.is_compiling():
            return size[0]  # at least as many groups as there are
        return groups_that_fit(x, size, self.config, tiling)


def _chunk(x: Tensor, past: Cache | None, last: bool) -> Chunk:
    return Chunk(batch_size=x.shape[0], image=past is None, past=past or {}, last=last)


def _to_frames(x: Tensor) -> Tensor:
    frames = rearrange(x, "b c t h w -> (b t) c h w")
    return frames.contiguous(memory_format=torch.channels_last)
