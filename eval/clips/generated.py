"""Clips being generated: the files they go into, and the first frames that they continue."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.config import Config
from common.files import atomic_path, check_no_file
from common.output_folder import Input, lock_folder, write_identity
from data.latents.dataset import LatentDataset
from data.video.decode import read_frames
from data.video.encode import write_video
from data.video.probe import probe
from eval.clips.labels import write_labels


class FirstFrames:
    """The first latent frames of each item of a cache, once they are known to fit a model.

    Args:
        folder: of a latent cache.
        count: first latent frames of each.
        encoder_hash: of the VAE that made the model's latents.
        latent_shape: (c, t, h, w) that the model makes.
        clips: that are to be continued, one per item.

    Raises:
        ValueError: latents of another encoder or size, too few items, or nothing left to make.
    """

    def __init__(
        self,
        folder: str | Path,
        count: int,
        *,
        encoder_hash: str,
        latent_shape: tuple[int, int, int, int],
        clips: int,
    ):
        self.latents, self.count = LatentDataset(folder, "mean"), count
        self.latents.check_encoder(encoder_hash)
        c, t, h, w = self.latents.latent_shape
        wanted_c, wanted_t, *size = latent_shape
        if (c, h, w) != (wanted := (wanted_c, *size)):
            raise ValueError(
                f"{folder}: latents of (c, h, w) = {(c, h, w)}, but the model makes {wanted}. "
                "Cache them at its size."
            )
        if count > min(t, wanted_t - 1):
            raise ValueError(
                f"known_frames={count}: {folder} has {t} latent frames, and of the {wanted_t} of a "
                "clip at least one must be left to sample"
            )
        if clips > len(self.latents):
            raise ValueError(f"num_clips={clips}: {folder} has {len(self.latents)} latents")

    def __call__(self, items: Sequence[int]) -> Float[Tensor, "b c k h w"]:
        """Raw latents of the first frames of these items."""
        return torch.stack([self.latents.draw(0, i)[0][:, : self.count] for i in items])

    def key(self, item: int) -> str:
        """The video that an item was made from."""
        return self.latents.raw(item)["key"]


@dataclass(frozen=True, kw_only=True)
class ClipFolder:
    """Where clips go: `clip-000000.mkv`, `clip-000001.mkv`, ..."""

    folder: Path
    """For lossless clips (ffv1)."""
    copies: Mapping[str, Path]
    """For copies, if any, in H.264 (`mp4`) and of 256 colors (`gif`)."""
    frame_rate: float
    """Hz."""

    def clip(self, index: int) -> Path:
        """File of a lossless clip."""
        return self.folder / f"clip-{index:06d}.mkv"

    def write(
        self,
        draw: Callable[[Sequence[int]], Iterator[tuple[int, UInt8[np.ndarray, "t h w c"]]]],
        accelerator: Accelerator,
        config: Config,
        *,
        inputs: Mapping[str, Input],
        labels: Sequence[int | None],
        class_names: Sequence[str],
        known: FirstFrames | None,
        decoded_by: Mapping[str, str],
    ) -> None:
        """Write the clips, and copies of them, that are not there, each process its share.

        Args:
            draw: gives the clips of these numbers.
            config: with `inputs` and `known`, what the folders are begun with.
            labels: of all clips, whose number they give; None each of an unconditional model.
            class_names: of all classes.
            known: what clips go on from.
            decoded_by: the VAE.

        Raises:
            ValueError: a file is in the way, another run holds a folder, or one holds other clips.
        """
        folders = {folder.resolve(): folder for folder in (self.folder, *self.copies.values())}
        for folder in folders.values():
            check_no_file(folder)  # before the first is made
        if known is not None:
            first_frames = Input(str(known.latents.folder), known.latents.hash)
            inputs = {**inputs, "first_frames": first_frames}
        main = accelerator.is_main_process
        with ExitStack() as locks:
            for folder in folders.values():
                locks.enter_context(lock_folder(folder, accelerator))
                write_identity(folder, config, inputs, accelerator, products=("clip-*",))

            # What each clip is to show, before there are any
            if main:
                asked = {self.clip(i).name: label for i, label in enumerate(labels)}
                continues = {file: known.key(i) for i, file in enumerate(asked)} if known else None
                write_labels(self.folder, asked, class_names, continues, decoded_by)
            accelerator.wait_for_everyone()

            # The clips
            local = range(accelerator.process_index, len(labels), accelerator.num_processes)
            todo = [i for i in local if not self.clip(i).exists()]
            if done := len(local) - len(todo):
                accelerator.print(
                    f"{self.folder}: going on, {done} of {len(local)} clips are there"
                )
            bar = tqdm(draw(todo), "sampling", len(todo), unit="clip", disable=not main)
            for i, frames in bar:
                write_video(self.clip(i), frames, self.frame_rate, codec="ffv1")
                self.copy(i, frames)
            for i in sorted({*local} - {*todo}):
                self.copy(i)
            accelerator.wait_for_everyone()

    def copy(self, index: int, frames: UInt8[np.ndarray, "t h w c"] | None = None) -> None:
        """Write the copies that are missing, of the lossless file or its `frames`."""
        paths = {
            kind: path
            for kind, folder in self.copies.items()
            if not (path := folder / f"clip-{index:06d}.{kind}").exists()
        }
        if not paths:
            return
        if frames is None:
            frames = read_frames(self.clip(index), range(probe(self.clip(index)).frames))
        if "mp4" in paths:
            write_video(paths["mp4"], frames, self.frame_rate)
        if "gif" in paths:
            first, *others = (Image.fromarray(frame) for frame in frames)
            with atomic_path(paths["gif"]) as temporary:
                first.save(
                    temporary,
                    format="GIF",
                    save_all=True,
                    append_images=others,
                    duration=1000 / self.frame_rate,
                    loop=0,
                )
