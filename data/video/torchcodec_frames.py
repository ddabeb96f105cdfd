"""Frames by torchcodec, an optional package: faster than PyAV, and checked against the packets.

torchcodec takes the place of frames from our own index of the packets, so it scans nothing and
guesses nothing. What it returns must have the expected timestamps. Where it does not, or where
packets do not number the frames (AVI, MPEG), PyAV reads instead.
"""

import importlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from data.video.decode_errors import Source
from data.video.timeline import Timeline

Decoder = Literal["pyav", "torchcodec"]


def check_decoder(decoder: Decoder, strict: bool) -> None:
    """Refuse (`ValueError`) torchcodec where it is not installed, or asked to be `strict`."""
    if decoder == "pyav":
        return
    if strict:
        raise ValueError(
            "decoder=torchcodec does not notice damaged data: use it with strict_decoding=false, "
            "on files that were packed or verified, or use decoder=pyav"
        )
    _decoders()


def torchcodec_frames(
    source: Source, indices: Sequence[int], timeline: Timeline
) -> UInt8[np.ndarray, "t h w 3"] | None:
    """The frames numbered `indices`, RGB in 0..255; None where torchcodec gives no or other frames.

    Args:
        source: a file or its bytes.
        timeline: of the same source.
    """
    pts, keys = timeline.pts, set(timeline.keys)
    if max(indices) >= len(pts):
        return None
    places = [{"pts": time, "duration": 1, "key_frame": int(time in keys)} for time in pts]
    try:
        video = _decoders().VideoDecoder(
            source,
            stream_index=timeline.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,  # parallelism is over videos, in loader workers
            device="cpu",
            custom_frame_mappings=json.dumps({"frames": places}),
        )
        frames = video.get_frames_at(list(indices))
    except (RuntimeError, ValueError, IndexError):  # PyAV reads the file, or says what is wrong
        return None
    times = np.array([pts[index] for index in indices]) * float(timeline.time_base)
    if np.abs(frames.pts_seconds.numpy() - times).max() >= timeline.time_base / 2:
        return None
    return frames.data.numpy()


@cache
def _decoders() -> Any:
    """The module torchcodec.decoders."""
    try:
        return importlib.import_module("torchcodec.decoders")
    except ImportError:
        raise ValueError(
            "decoder=torchcodec, but the package is not installed: pip install 'ivvae[torchcodec]'"
            ", or use decoder=pyav"
        ) from None
    except (RuntimeError, OSError) as error:
        raise ValueError(
            "decoder=torchcodec, but its libraries cannot be loaded: install FFmpeg with shared "
            f"libraries, or use decoder=pyav ({str(error).strip().partition(chr(10))[0]})"
        ) from None
