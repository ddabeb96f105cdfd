"""What a trained Latte must remember of its latents, kept with the weights."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from common.files import read_json
from latte.diffusion import DiffusionConfig
from latte.diffusion_process import DiffusionProcess, make_process
from latte.flow import FlowConfig


@dataclass(frozen=True, kw_only=True)
class TrainingMetadata:
    """The latents a model was trained on, and the process that it learned to reverse."""

    encoder_hash: str
    """sha256 of the encoder that made the latents; only a VAE with it can decode samples."""
    cache_hash: str
    """sha256 of the cache's manifest."""
    mean: tuple[float, ...]
    """Mean of the raw latents, per channel."""
    std: tuple[float, ...]
    """Standard deviation of the raw latents, per channel."""
    class_names: tuple[str, ...]
    """Names of the labels, in order; empty for an unconditional model."""
    frame_rate: float
    """Frames per second of the clips behind the latents, Hz."""
    frames: int | None = None
    """Frames of those clips; null: as many as the VAE decodes to unless told."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """The process, unless it is a flow."""
    flow: FlowConfig | None = None
    """The flow, or null."""

    @property
    def process(self) -> DiffusionProcess:
        """The process that the model was trained to reverse."""
        return make_process(self.diffusion, self.flow)

    def normalize(self, z: Float[Tensor, "*b c t h w"]) -> Float[Tensor, "*b c t h w"]:
        """The VAE's raw latents to what the model knows: (z - mean) / std."""
        return (z - self._per_channel(self.mean, z)) / self._per_channel(self.std, z)

    def denormalize(self, z: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Normalized latents to the VAE's raw ones: z * std + mean."""
        return z * self._per_channel(self.std, z) + self._per_channel(self.mean, z)

    @classmethod
    def load(cls, folder: str | Path) -> "TrainingMetadata":
        """Read them from an export folder.

        Raises:
            ValueError: no metadata there, or of another version.
        """
        training = read_json(Path(folder) / "training.json")
        try:
            values = dict(training["metadata"])
            for name in ("mean", "std", "class_names"):
                values[name] = tuple(values[name])
            values["diffusion"] = DiffusionConfig(**values["diffusion"])
            if values.get("flow") is not None:
                values["flow"] = FlowConfig(**values["flow"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder}: not an export of train_latte ({error})") from None

    @staticmethod
    def _per_channel(values: tuple[float, ...], z: Tensor) -> Float[Tensor, "c 1 1 1"]:
        return torch.tensor(values, device=z.device)[:, None, None, None]
