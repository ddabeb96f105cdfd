"""What is written is what is read back."""

import ctypes

import av
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from common.pixels import to_float
from data.video.decode import read_frames
from data.video.encode import encode_video, from_uint8, to_uint8, write_video
from data.video.probe import probe
from tests.builders.videos import barcode_frame, read_barcode

M_PERTURB = -6  # of malloc.h


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
def test_ffv1_gives_back_every_pixel(tmp_path, height, width):
    frames = noise(7, height, width, 3)
    write_video(tmp_path / "a.mkv", frames, 25, codec="ffv1")
    np.testing.assert_array_equal(read_frames(tmp_path / "a.mkv", range(7)), frames)
    assert probe(tmp_path / "a.mkv").fps == 25


def test_h264_keeps_frames_colors_and_rate(tmp_path):
    y, x = np.mgrid[:64, :96]
    slope = [np.stack([60 + y, 60 + x, 200 - y - t], axis=-1) for t in range(20)]
    frames = np.stack(slope).astype(np.uint8)
    write_video(tmp_path / "a.mp4", frames, 30000 / 1001, quality=10)
    info = probe(tmp_path / "a.mp4")
    assert (info.frames, info.height, info.width, info.codec) == (20, 64, 96, "h264")
    assert info.fps == pytest.approx(30000 / 1001, rel=1e-9)
    error = read_frames(tmp_path / "a.mp4", range(20)).astype(float) - frames
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 0.5  # no channel is shifted
    assert np.abs(error).mean() < 1.5


def test_h264_plays_in_browsers(tmp_path):
    write_video(tmp_path / "a.mp4", noise(2, 32, 32, 3), 25)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # starts before all of it has arrived
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_h264_pads_odd_sizes_with_the_edge(tmp_path):
    frames = np.stack([barcode_frame(number, 63, 95) for number in range(5)])
    write_video(tmp_path / "a.mp4", frames, 25, quality=8)
    back = read_frames(tmp_path / "a.mp4", range(5))
    assert back.shape == (5, 64, 96, 3)
    assert [read_barcode(frame) for frame in back] == list(range(5))
    last, edge = back[:, 63].astype(float), back[:, 62].astype(float)
    assert np.abs(last - edge).mean() < 6


def test_what_lay_in_memory_before_does_not_matter():
    """x264 with AVX-512 reads memory that it never set, unless told not to."""
    frames = np.stack([np.roll(barcode_frame(t, 48, 64, t * 7), t * 3, axis=1) for t in range(30)])
    try:
        fill = ctypes.CDLL(None).mallopt
    except AttributeError:
        pytest.skip("only glibc fills new memory with a byte of choice")
    try:
        encoded = set()
        for byte in (0, 85, 170):
            assert fill(M_PERTURB, byte)
            encoded.add(encode_video(frames, 25, quality=12))
    finally:
        fill(M_PERTURB, 0)
    assert len(encoded) == 1


def test_an_iterator_gives_the_same_bytes_as_an_array():
    frames = noise(5, 32, 48, 3)
    for codec in ("h264", "ffv1"):
        assert encode_video(iter(frames), 25, codec=codec) == encode_video(frames, 25, codec=codec)


def test_a_failure_leaves_no_file(tmp_path):
    def broken():
        yield barcode_frame(0)
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        write_video(tmp_path / "a.mp4", broken(), 25)
    with pytest.raises(ValueError, match="frame 1 is uint8"):
        write_video(tmp_path / "a.mp4", [barcode_frame(0), barcode_frame(1, 32, 32)], 25)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.mp4", {"codec": "vp9"}, r"'vp9' is not one of \['ffv1', 'h264'\]"),
        ("a.mp4", {"codec": "ffv1"}, r"ffv1 needs a name ending in \.mkv"),
        ("a.mp4", {"quality": 52}, "quality=52 must be between"),
        ("a.mp4", {"fps": 0.0}, "fps=0.0 must be above 0"),
        ("a.mp4", {"fps": float("nan")}, "fps=nan must be above 0"),
        ("a.mp4", {"frames": []}, "no frames to write"),
        ("a.mp4", {"frames": noise(2, 32, 32, 3).astype(np.float32)}, "frame 0 is float32"),
        ("a.mp4", {"frames": noise(2, 32, 32, 1)}, "must be uint8"),
    ],
)
def test_mistakes_are_named(tmp_path, name, options, message):
    arguments = {"frames": noise(2, 32, 32, 3), "fps": 25, **options}
    with pytest.raises(ValueError, match=rf"a\.mp4: .*{message}"):
        write_video(tmp_path / name, **arguments)


def test_all_256_levels_survive_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).reshape(4, 8, 8, 1).expand(4, 8, 8, 3).numpy()
    video = from_uint8(levels)
    assert video.shape == (3, 4, 8, 8)
    assert (video.min().item(), video.max().item()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(video), levels)
    divided = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    assert_close(to_float(torch.arange(256, dtype=torch.uint8)), divided, rtol=0, atol=0)


def test_pixels_are_rounded_and_clamped_not_truncated_or_wrapped():
    values = torch.tensor([-1.7, -1.0, -0.9965, 0.0, 0.9959, 1.0, 1.3])
    video = values.reshape(1, 1, 1, 7).expand(3, 1, 1, 7)
    assert to_uint8(video)[0, 0, :, 0].tolist() == [0, 0, 0, 128, 254, 255, 255]
    assert_close(from_uint8(to_uint8(video))[0, 0, 0, 3].item(), 128 / 127.5 - 1)


def test_values_that_are_not_finite_are_refused():
    video = torch.zeros(3, 1, 2, 2)
    video[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        to_uint8(video)
