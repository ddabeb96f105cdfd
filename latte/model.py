"""The Latte transformer: noisy latents in, predicted noise (and its variance) out."""

from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.pretrained import Pretrained
from latte.blocks import Block, FinalLayer, join_images, split_images
from latte.config import LatteConfig
from latte.embeddings import LabelEmbedder, TimestepEmbedder, spatial_positions, temporal_positions


class Latte(nn.Module, Pretrained, license="apache-2.0", tags=["video-generation", "diffusion"]):
    """Latent diffusion transformer that attends within frames and across them.

    Modules carry the public checkpoints' names, so `latte.convert` only has to check the position
    tables. A new model predicts exactly zero.

    Source: Ma et al. 2024, "Latte: Latent Diffusion Transformer for Video Generation".
    """

    config_class: ClassVar[type] = LatteConfig

    pos_embed: Tensor  # n d
    temp_embed: Tensor  # t 1 d

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    def __init__(self, config: LatteConfig):
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.x_embedder = PatchEmbed(
            (config.height, config.width), config.patch_size, config.in_channels, d
        )
        self.t_embedder = TimestepEmbedder(d)
        if config.num_classes is not None:
            self.y_embedder = LabelEmbedder(config.num_classes, d)
        self.blocks = nn.ModuleList(
            Block(d, config.num_heads, config.mlp_ratio, axes, config.num_frames)
            for axes in config.axes
        )
        self.final_layer = FinalLayer(d, config.patch_size**2 * config.out_channels)
        frames = temporal_positions(config.num_frames, d)
        self.register_buffer("pos_embed", spatial_positions(*config.grid, d), persistent=False)
        self.register_buffer("temp_embed", frames[:, None], persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

        # The patch convolution is a linear layer on flattened patches: initialized like one.
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(rearrange(projection.weight.data, "d c p q -> d (c p q)"))
        nn.init.zeros_(projection.bias)  # type: ignore[arg-type]

        # Conditions start small.
        for module in self.t_embedder.mlp:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        if self.config.num_classes is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)

        # adaLN-Zero: every block starts as the identity, and the output as zero.
        for module in [*self.blocks, self.final_layer]:
            nn.init.zeros_(module.adaLN_modulation[1].weight)  # type: ignore[index]
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self,
        x: Float[Tensor, "b c t h w"],
        t: Int[Tensor, " b"] | Float[Tensor, " b"],
        y: Int[Tensor, "b ..."] | None = None,
        num_images: int = 0,
    ) -> Float[Tensor, "b k t h w"]:
        """Predict the noise in `x`.

        Args:
            x: Noisy latents. In joint training the last `num_images` entries of the t axis are
                independent images: temporal blocks pass them by.
            t: Timesteps in the training schedule's units (0 .. 999), one per row.
            y: Labels, for a conditional model only: one per row, or one for the clip and then one
                for each image. `config.null_label` asks for the unconditional prediction.
            num_images: Images of joint training after the clip's `config.num_frames` frames.

        Returns:
            Predicted noise in the first c channels; with `learn_sigma` c more channels that place
            the log-variance between its bounds (see `latte.diffusion`).

        Raises:
            ValueError: a size that differs from the config, or labels missing or unexpected.
        """
        self._check_sizes(x, num_images)
        grid_h, grid_w = self.config.grid
        p = self.config.patch_size
        clip_cond, cond = self._condition(t, y, num_images)  # b 1 d, b k d

        x = self.x_embedder(rearrange(x, "b c t h w -> (b t) c h w"))  # (b t) n d
        x = rearrange(x, "(b t) n d -> b t n d", b=len(t)) + self.pos_embed
        clip, images = split_images(x, self.config.num_frames)
        first_in_time = next(i for i, axes in enumerate(self.config.axes) if axes != "space")
        for i, block in enumerate(self.blocks):
            if i == first_in_time:
                clip = clip + self.temp_embed
            if self.config.axes[i] == "time":
                clip = self._run(block, clip, clip_cond)  # b t n d, without images
            else:
                tokens = self._run(block, join_images(clip, images), cond)  # b t n d
                clip, images = split_images(tokens, self.config.num_frames)
        x = self.final_layer(join_images(clip, images), cond)  # b t n (p q k)
        return rearrange(x, "b t (h w) (p q k) -> b k t (h p) (w q)", h=grid_h, w=grid_w, p=p, q=p)

    def _condition(
        self, t: Tensor, y: Tensor | None, num_images: int
    ) -> tuple[Float[Tensor, "b 1 d"], Float[Tensor, "b k d"]]:
        """The clip's condition, and that of every frame and image (k = 1 if it is the same one)."""
        cond = rearrange(self.t_embedder(t), "b d -> b 1 d")
        if self.config.num_classes is None:
            if y is not None:
                raise ValueError("Latte: labels given to an unconditional model. Pass y=None.")
            return cond, cond
        if y is None:
            raise ValueError(
                "Latte: a class-conditional model needs labels. Pass y, or "
                f"y={self.config.null_label} (the null label) for the unconditional prediction."
            )
        if y.ndim == 1:
            cond = cond + self.y_embedder(rearrange(y, "b -> b 1"))
            return cond, cond
        if y.shape[1] != 1 + num_images:
            raise ValueError(
                f"Latte: {y.shape[1]} labels per row, but {num_images} images need "
                f"{1 + num_images}: one for the clip, one for each image."
            )
        cond = cond + self.y_embedder(y)  # b (1 + i) d
        clip, images = cond[:, :1], cond[:, 1:]
        return clip, torch.cat([clip.expand(-1, self.config.num_frames, -1), images], dim=1)

    def _run(self, block: nn.Module, x: Tensor, cond: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, cond, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]
        return block(x, cond)

    def _check_sizes(self, x: Tensor, num_images: int) -> None:
        c = self.config
        wanted = (c.in_channels, c.num_frames + num_images, c.height, c.width)
        if num_images < 0 or tuple(x.shape[1:]) != wanted:
            raise ValueError(
                f"Latte: got latents of (c, t, h, w) = {tuple(x.shape[1:])}, but the config with "
                f"num_images={num_images} needs {wanted}. Change the latents or the config."
            )
