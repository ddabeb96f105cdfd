"""What a latent cache holds, and the clips behind its latents."""

from collections import Counter
from collections.abc import Callable

from jaxtyping import UInt8
from torch import Tensor

from data.clips.dataset import ClipDataset, PackedClips
from data.latents.dataset import LatentDataset

Source = Callable[[int], UInt8[Tensor, "3 t h w"]]
"""The clip behind a latent, by the latent's index."""


def description(latents: LatentDataset) -> list[str]:
    """Lines that tell what a cache holds: counts, sizes, statistics per channel, classes."""
    manifest = latents.manifest
    source, statistics = manifest["source"], manifest["statistics"]
    names = ("videos", "too_short", "items", "failures")
    counts = Counter(latents.label(i) for i in range(len(latents)))
    channels = zip(statistics["mean"], statistics["std"], strict=True)
    return [
        f"{latents.folder}: " + ", ".join(f"{manifest['totals'][n]} {n}" for n in names),
        f"  latents {'x'.join(map(str, latents.latent_shape))} of {source['frames']} frames at "
        f"stride {source['stride']}, {source['height']}x{source['width']} pixels",
        f"  VAE {manifest['vae']['class']}, encoder {latents.encoder_hash[:12]}, source "
        f"{source['hash'][:12]}",
        *(f"  channel {i:2}: mean {m:8.4f}, std {s:8.4f}" for i, (m, s) in enumerate(channels)),
        *(f"  class {name}: {counts[label]}" for label, name in enumerate(latents.class_names)),
        *([f"  unlabeled: {counts[-1]}"] if counts[-1] else []),
    ]


def clips_behind(latents: LatentDataset, folder: str) -> Source:
    """The clips that a cache was made from.

    Args:
        folder: of their shards.

    Raises:
        ValueError: other shards than those.
    """
    made = latents.manifest["source"]
    others = ("hash", "crop", "decoder")
    options = {name: value for name, value in made.items() if name not in others}
    clips = ClipDataset(PackedClips(folder=folder, **options), seed=0)
    if clips.hash != made["hash"]:
        raise ValueError(
            f"{folder}: not what {latents.folder} was made from "
            f"({clips.hash[:12]}, not {made['hash'][:12]})"
        )
    numbers = {clips.key(i): i for i in range(len(clips))}

    def clip(index: int) -> UInt8[Tensor, "3 t h w"]:
        item = latents.raw(index)
        name = item["key"].removesuffix(":flip").rsplit(":", 1)[0]
        return clips.clip(numbers[name], item["start"], flip=item["flip"])

    return clip
