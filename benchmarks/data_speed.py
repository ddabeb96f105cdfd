"""How fast clips and latents load, next to plain alternatives; resume, memory and caching."""

import importlib.util
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import av
import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from torch.testing import assert_close
from webdataset.compat import WebDataset

from benchmarks.data_stand_ins import BlankVideos, link_many, moving_noise, packed
from benchmarks.shared import seconds_in_turns
from common.cli import main
from common.config import Config
from common.measure import Timing
from common.pixels import to_float
from data.clips.batch_order import BatchOrder
from data.clips.batches import batches
from data.clips.dataset import ClipConfig, ClipDataset
from data.clips.options import Cut
from data.latents.dataset import LatentDataset
from data.latents.inspection import export_latents
from data.latents.shards import CacheConfig
from data.latents.writer import LatentCache
from data.video.encode import encode_video
from data.video.transforms import EXACT, fit
from vae import VAEConfig, VideoVAE

Part = Literal["decoding", "reading", "waiting", "resuming", "memory", "caching"]
SHAPE = (16, 5, 32, 32)
SPAN = range(40, 40 + 17 * 3, 3)
"""Frames of the decoded clip: 17 at stride 3, from the middle of the video."""


@dataclass(frozen=True, kw_only=True)
class DataSpeed(Config):
    """Measure data loading in one run, one thread per process; prints ratios."""

    parts: tuple[Part, ...] = get_args(Part)
    """What to measure."""
    sizes: tuple[tuple[int, int], ...] = ((720, 1280), (240, 320))
    """Height and width of the videos that are decoded, pixels."""
    latents: Annotated[int, Ge(1)] = 1024
    """Latents, of 32 x 5 x 32 x 32 float16 moments each (328 kB)."""
    num_clips: Annotated[int, Ge(1)] = 10_000
    """Clips decoded while memory is watched."""
    samples: Annotated[int, Ge(1)] = 1_000_000
    """Samples of the index that a run resumes on."""
    consumer_batches: Annotated[int, Ge(1)] = 200
    """Batches of 8 latents that a consumer of 50 ms takes."""
    rounds: Annotated[int, Ge(1)] = 3
    """Repetitions of each reader, in turn; the fastest counts."""


def run(config: DataSpeed) -> None:
    """All measurements, one after the other."""
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    with tempfile.TemporaryDirectory() as folder:
        for part in config.parts:
            PARTS[part](Path(folder), config)


def _decoding(_: Path, config: DataSpeed) -> None:
    first = Cut(SPAN[0])
    for height, width in config.sizes:
        video = encode_video(moving_noise(120, height, width), 25, quality=23)
        options = ClipConfig(folder="none", frames=17, stride=3, height=height, width=width)
        readers: dict[str, Callable[[], Tensor]] = {
            "plain PyAV loop": lambda v=video, h=height, w=width: fit(_plain(v), h, w),
            "ours": lambda v=video, o=options: o.clip(v, 120, 3, first),
        }
        if importlib.util.find_spec("torchcodec"):
            other = replace(options, decoder="torchcodec", strict_decoding=False)
            readers |= {
                "torchcodec": lambda v=video, h=height, w=width: fit(_torchcodec(v), h, w),
                "ours, decoder=torchcodec": lambda v=video, o=other: o.clip(v, 120, 3, first),
            }
        exact = to_float(readers["plain PyAV loop"]())
        for name, reader in readers.items():
            difference = (to_float(reader()) - exact).abs().mean().item()
            # torchcodec enlarges the colors more roughly; a wrong frame differs by 0.6
            assert difference <= (0.1 if "torchcodec" in name else 0), (name, difference)
        _table(f"clips of 17 frames at {height}p, clips/s/core", readers, config.rounds, 1)


def _plain(video: bytes) -> Tensor:
    """The loop of most tutorials: decode from the start, keep what is wanted."""
    frames = []
    with av.open(io.BytesIO(video), mode="r") as container:
        container.streams.video[0].thread_type = "NONE"
        for number, frame in enumerate(container.decode(video=0)):
            if number in SPAN:
                frames.append(frame.to_ndarray(format="rgb24", interpolation=EXACT))
            if number == SPAN[-1]:
                break
    return torch.from_numpy(np.stack(frames))


def _torchcodec(video: bytes) -> Tensor:
    from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]

    decoder = VideoDecoder(video, num_ffmpeg_threads=1, dimension_order="NHWC")
    return decoder.get_frames_at(list(SPAN)).data


def _latents(folder: Path, config: DataSpeed) -> LatentDataset:
    """A cache of made-up latents; made once."""
    if (folder / "latents").exists():
        return LatentDataset(folder / "latents")
    blank = cast(ClipDataset, BlankVideos(config.latents))
    options = CacheConfig(items_per_shard=256)
    cache = LatentCache(folder / "latents", blank, VAE_HASHES, SHAPE, options)
    cache.begin(cache.shards)
    noise = torch.Generator().manual_seed(0)
    cache.write(lambda x: torch.randn(len(x), 32, *SHAPE[1:], generator=noise), cache.pending())
    cache.finish()
    return LatentDataset(folder / "latents")


def _reading(folder: Path, config: DataSpeed) -> None:
    latents = _latents(folder, config)
    mean = LatentDataset(folder / "latents", posterior="mean")
    tars = [str(tar) for tar in export_latents(latents, folder / "tars")]
    order = BatchOrder(latents.shard_sizes, 1, seed=0).epoch_order(0).tolist()
    for item, sample in zip(range(8), _tars(tars), strict=False):
        assert_close(latents.raw(item)["moments"], sample, rtol=0, atol=0)

    def read(items: Iterable[Tensor]) -> Tensor:
        return cast(Tensor, sum(int(item.shape[1] == 5) for item in items))

    readers = {
        "webdataset tar + npy, in order": lambda: read(_tars(tars)),
        "ours, shuffled, raw moments": lambda: read(latents.raw(i)["moments"] for i in order),
        "ours, shuffled, posterior mean": lambda: read(mean[0, i]["latent"] for i in order),
        "ours, shuffled, posterior sample": lambda: read(latents[0, i]["latent"] for i in order),
    }
    assert all(reader() == config.latents for reader in readers.values())
    _table("latents, items/s", readers, config.rounds, config.latents)


def _tars(tars: list[str]) -> Iterator[Tensor]:
    for sample in cast(Iterable[dict[str, Any]], WebDataset(tars, shardshuffle=False).decode()):
        yield torch.from_numpy(sample["npy"])


def _waiting(folder: Path, config: DataSpeed) -> None:
    latents = _latents(folder, config)
    order = BatchOrder(latents.shard_sizes, 8, seed=0)
    stream = batches(latents, order, 0, config.consumer_batches + 1, workers=2)
    start = time.perf_counter()
    next(stream)  # starts the workers
    print(f"\nloader of latents, 2 workers: first batch after {time.perf_counter() - start:.2f} s")
    timing = Timing("step", "wait")
    for _ in range(config.consumer_batches):
        with timing.measure("step"):
            time.sleep(0.05)
        with timing.measure("wait"):
            next(stream)
    print(f"a consumer of 50 ms per batch of 8 waits {timing.shares['wait']:.2%} of the time")
    stream.close()  # type: ignore[attr-defined]


def _resuming(folder: Path, config: DataSpeed) -> None:
    link_many(folder / "million", config.samples)
    options = ClipConfig(folder=str(folder / "million"), frames=3, height=32, width=32)
    print(f"\nresume on an index of {config.samples:,} samples")
    begin = time.perf_counter()
    dataset = ClipDataset(options, seed=0)
    loaded = time.perf_counter()
    order = BatchOrder(dataset.shard_sizes, 8, seed=0)
    step = 3 * order.steps_per_epoch + 777
    batch = next(batches(dataset, order, step, step + 1))
    assert len(batch["key"]) == 8
    end = time.perf_counter()
    print(f"  load {loaded - begin:6.2f} s, first batch {end - loaded:5.2f} s")


def _memory(folder: Path, config: DataSpeed) -> None:
    dataset = ClipDataset(
        ClipConfig(folder=str(packed(folder / "small")), frames=3, height=32, width=32), seed=0
    )
    readings = []
    begin = time.perf_counter()
    for number in range(config.num_clips):
        dataset[number, number % len(dataset)]
        if number % max(1, config.num_clips // 10) == 0:
            readings.append(_resident())
    rate = config.num_clips / (time.perf_counter() - begin)
    print(f"\nmemory over {config.num_clips} clips ({rate:.0f}/s), MB: {readings}")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1_000_000


def _caching(folder: Path, _: DataSpeed) -> None:
    torch.manual_seed(0)
    model = VideoVAE(VAEConfig(z_dim=4, dim=16)).eval()
    config = ClipConfig(folder=str(packed(folder / "small")), frames=17, height=96, width=96)
    clips = ClipDataset(config, seed=0)
    shape = model.config.latent_shape(17, 96, 96)
    options = CacheConfig(clips_per_video=4)
    cache = LatentCache(folder / "encoded", clips, VAE_HASHES, shape, options)
    cache.begin(cache.shards)
    with torch.inference_mode():
        timing = cache.write(
            lambda x: model.encode(to_float(x)).moments, cache.pending(), batch_size=4, workers=1
        )
    shares = ", ".join(f"{name} {share:.1%}" for name, share in timing.shares.items())
    print(f"\ncaching {len(cache.items)} clips with one worker: {shares}")


def _table(title: str, readers: dict[str, Callable[[], Any]], rounds: int, items: int) -> None:
    seconds = seconds_in_turns([*readers.values()], rounds, time.perf_counter)
    rates = [items / min(runs) for runs in seconds]
    print(f"\n{title}")
    for name, rate in zip(readers, rates, strict=True):
        print(f"  {name:34} {rate:10.1f}  {rate / rates[0]:5.2f}x")


VAE_HASHES = {"sha256": "", "encoder_sha256": ""}

PARTS: dict[Part, Callable[[Path, DataSpeed], None]] = {
    "decoding": _decoding,
    "reading": _reading,
    "waiting": _waiting,
    "resuming": _resuming,
    "memory": _memory,
    "caching": _caching,
}

if __name__ == "__main__":
    main(DataSpeed, run)
