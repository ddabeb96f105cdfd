"""Small videos for tests; each frame carries its number as a bar code that survives compression."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from data.importers.wheels import CLIPS, SHOTS, Shot
from data.video.encode import write_video

BITS = 10
"""Numbers below 1024."""


def barcode_frame(number: int, height: int = 64, width: int = 96, shade: int = 0) -> np.ndarray:
    """An h w 3 uint8 frame: `number` in black and white blocks above a slope that moves with it.

    `shade` (0..255) tells videos apart.
    """
    y, x = np.mgrid[:height, :width]
    red = (x * 2 + number * 3) % 256
    frame = np.stack([red, np.full_like(red, shade), 255 - y * 255 // height], axis=-1)
    bits = number >> (x * BITS // width) & 1
    frame[: height // 2] = (bits[: height // 2] * 255)[..., None]
    return frame.astype(np.uint8)


def read_barcode(frame: np.ndarray) -> int:
    """The number that `barcode_frame` wrote, from a decoded frame of any size."""
    height, width = frame.shape[:2]
    centers = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    rows = frame[height // 8 : 3 * height // 8].mean(axis=(0, 2))
    return sum(int(rows[x] > 127) << bit for bit, x in enumerate(centers))


def write_barcode_video(
    path: Path,
    frames: int = 40,
    height: int = 64,
    width: int = 96,
    *,
    fps: int = 25,
    shade: int = 0,
    encoder: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    audio: bool = False,
    pts: Sequence[int] | None = None,
    moov_first: bool = False,
) -> Path:
    """Write a video of bar codes 0, 1, ...; the container follows from the name of `path`.

    Args:
        encoder: FFmpeg's name of the video encoder.
        options: of the encoder, such as `{"bf": "2", "g": "12"}`.
        audio: add a tone.
        pts: time of each frame in ticks of 1/1000 s, for a variable frame rate.
        moov_first: put an mp4's table of frames at the start of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    muxer = {"movflags": "+faststart"} if moov_first else {}
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(encoder, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = Fraction(1, 1000) if pts else Fraction(1, fps)
        stream.codec_context.thread_count = 1
        tone = (
            container.add_stream("aac" if path.suffix != ".avi" else "mp2", 48000)
            if audio
            else None
        )
        for number in range(frames):
            image = barcode_frame(number, height, width, shade)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = pts[number] if pts else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            container.mux(tone.encode(_tone(frames / fps)))
            container.mux(tone.encode(None))
    return path


def write_packed_avi(path: Path, frames: int = 41) -> Path:
    """Write an AVI as DivX and XviD did: a B-frame in one packet with the frame it follows.

    An empty packet takes the B-frame's place. UCF-101 is made of such files, which mislead a reader
    that counts packets or seeks. `frames` is odd; frames 1, 3, 5, ... are B-frames.
    """
    options = {"bf": "1", "g": "12", "b_strategy": "0"}
    plain = write_barcode_video(
        path.with_name("plain.avi"), frames, encoder="mpeg4", options=options
    )
    picture = b"\0\0\1\xb6"  # start code; the next two bits are the type: I, P, B
    with av.open(str(plain)) as source, av.open(str(path), "w") as container:
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream)
        coded = [bytes(packet) for packet in source.demux(stream) if packet.size]
        packed = []
        for data in coded:
            if data[data.index(picture) + 4] >> 6 == 2:
                packed[-1] += data
                packed.append(picture + b"\x51\x02\x7f")  # a picture that is not coded
            else:
                packed.append(data)
        packed[0] = packed[0].replace(picture, b"\0\0\1\xb2DivX503b1393p" + picture, 1)
        for number, data in enumerate(packed):
            packet = av.Packet(data)
            packet.stream, packet.time_base = copy, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = data[data.index(picture) + 4] >> 6 == 0
            container.mux(packet)
    plain.unlink()
    return path


def turn_clockwise(path: Path) -> Path:
    """Store in an mp4 that it is shown turned by a quarter, as phones do."""
    return set_display_matrix(path, 0, 1, -1, 0)


def damage_packet(path: Path, number: int) -> Path:
    """Spoil the start of a packet, which its decoder then refuses."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    place = packets[number].pos
    data = bytearray(path.read_bytes())
    start = data.index(bytes(packets[number])[:16], place)
    data[start : start + 60] = bytes(60)
    path.write_bytes(data)
    return path


def write_frames(
    folder: Path, numbers: Iterable[int], name: str = "{:06d}.png", shade: int = 0
) -> Path:
    """Write bar codes 0, 1, ... as images whose names carry `numbers`."""
    folder.mkdir(parents=True, exist_ok=True)
    for code, number in enumerate(numbers):
        image = Image.fromarray(barcode_frame(code, 48, 64, shade))
        image.save(folder / name.format(number), quality=95)
    return folder


def write_audio(
    path: Path, seconds: float = 1.0, cover: bool = False, empty_video: bool = False
) -> Path:
    """Write a file with a tone and no picture but a cover, or a video stream without frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 48000)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 96, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(barcode_frame(0), format="rgb24")
            container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
        if empty_video:
            video = container.add_stream("mpeg4", rate=25)
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
            video.codec_context.open()
        container.mux(stream.encode(_tone(seconds)))
        container.mux(stream.encode(None))
    return path


def _tone(seconds: float) -> av.AudioFrame:
    samples = np.sin(np.arange(int(48000 * seconds)) * 0.05).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = 48000
    return frame


def write_demo_clips(folder: Path) -> None:
    """Stand-ins for the demo's clips: bar codes, as long as the shots need, in the shots' boxes."""
    folder.mkdir(parents=True, exist_ok=True)
    for clip in CLIPS:
        shots = [shot for shot in SHOTS if shot.clip == clip.name]
        frames = max(shot.end for shot in shots)
        if any(shot.box for shot in shots):
            write_video(folder / clip.name, _boxed_frames(shots, frames), fps=25)
        else:
            encoder = "mpeg2video" if clip.name.endswith("mpg") else "libx264"
            write_barcode_video(folder / clip.name, frames, 32, 80, encoder=encoder)


def _boxed_frames(shots: Sequence[Shot], frames: int) -> Iterator[np.ndarray]:
    boxes = [shot.box for shot in shots if shot.box]
    width, height = max(box[2] for box in boxes), max(box[3] for box in boxes)
    for number in range(frames):
        frame = np.zeros((height, width, 3), np.uint8)
        for shot in shots:
            if shot.box and shot.start <= number < shot.end:
                left, top, right, bottom = shot.box
                code = barcode_frame(number, bottom - top, right - left)
                frame[top:bottom, left:right] = code
        yield frame


def drop_sync_table(path: Path) -> Path:
    """Rename an mp4's table of sync frames, so that it says that all frames are."""
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    return path


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Store in an mp4 that x is shown at ax + cy, and y at bx + dy."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # 40 bytes of version, times, layer and volume before it
    one = 1 << 16
    data[start : start + 36] = struct.pack(
        ">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30
    )
    path.write_bytes(data)
    return path
