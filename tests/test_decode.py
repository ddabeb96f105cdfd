"""Every frame asked for is the frame got, whatever the container; bad files say what is wrong."""

import os
import random
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.clips.options import ClipOptions
from data.video import container, decode
from data.video.container import DecodeError
from data.video.decode import check_decoder, iterate_frames, read_frames, torchcodec_frames
from data.video.probe import probe, probe_header, read_timing
from tests.builders.videos import (
    read_barcode,
    turn_clockwise,
    write_audio,
    write_barcode_video,
    write_packed_avi,
)

B_FRAMES = {"bf": "2", "g": "12"}
IRREGULAR = [n * 40 + n % 5 * 7 + (n > 20) * 500 for n in range(40)]
VP8 = {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"}
VP9 = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
HEVC = {"x265-params": "log-level=none:keyint=12:pools=none:frame-threads=1"}
FORMATS = {
    "h264 with B-frames and sound": ("a.mp4", {"options": B_FRAMES, "audio": True}),
    "open groups of pictures": (
        "a.mkv",
        {"options": {**B_FRAMES, "x264-params": "open-gop=1"}},
    ),
    "transport stream": ("a.ts", {"options": B_FRAMES}),
    "no timestamps": ("a.h264", {"options": B_FRAMES}),
    "mpeg4 AVI with B-frames": (
        "a.avi",
        {"encoder": "mpeg4", "options": B_FRAMES, "audio": True},
    ),
    "mpeg2": ("a.mpg", {"encoder": "mpeg2video", "options": B_FRAMES}),
    "vp8": ("a.webm", {"encoder": "libvpx", "options": VP8}),
    "vp9": (
        "a.webm",
        {"encoder": "libvpx-vp9", "options": VP9},
    ),
    "variable frame rate": ("a.mp4", {"options": B_FRAMES, "pts": IRREGULAR}),
    "10 bits": ("a.mp4", {"pixels": "yuv420p10le", "options": B_FRAMES}),
    "10 bits in hevc": (
        "a.mkv",
        {"encoder": "libx265", "pixels": "yuv420p10le", "options": HEVC},
    ),
    "hevc": ("a.mkv", {"encoder": "libx265", "options": HEVC}),
    "variable frame rate in vp9": (
        "a.webm",
        {"encoder": "libvpx-vp9", "options": VP9, "pts": IRREGULAR},
    ),
    "odd sizes": ("a.mp4", {"height": 67, "width": 101, "pixels": "yuv444p"}),
    "odd sizes in AVI": ("a.avi", {"height": 67, "width": 101, "encoder": "mpeg4"}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_frames_are_the_ones_asked_for(name, tmp_path):
    file, how = FORMATS[name]
    path = write_barcode_video(tmp_path / file, **how)
    for source in (path, path.read_bytes()):
        info = probe(source)
        assert (info.frames, info.height, info.width) == (
            40,
            how.get("height", 64),
            how.get("width", 96),
        )
        assert [read_barcode(frame.image) for frame in iterate_frames(source)] == list(range(40))
        assert [read_barcode(frame.image) for frame in iterate_frames(source, 17, 30)] == list(
            range(17, 30)
        )
        assert_random_clips(source)


def assert_random_clips(source, **options):
    """Frames of any order, and clips of any stride, are those asked for."""
    draw = random.Random(0)
    clips = [[draw.randrange(40) for _ in range(4)] for _ in range(4)]
    for _ in range(4):
        stride = draw.randint(1, 8)
        start = draw.randrange(40 - 4 * stride)
        clips.append([start + stride * i for i in range(5)])
    for clip in clips:
        assert [read_barcode(frame) for frame in read_frames(source, clip, **options)] == clip


@pytest.fixture
def torchcodec():
    try:
        check_decoder("torchcodec", strict=False)
    except ValueError as error:
        pytest.skip(str(error))


COUNTED = {
    *("transport stream", "no timestamps", "mpeg4 AVI with B-frames", "mpeg2", "vp8"),
    "odd sizes in AVI",
}
"""Formats whose packets do not number the frames: torchcodec is not asked."""


@pytest.mark.usefixtures("torchcodec")
@pytest.mark.parametrize("name", FORMATS)
def test_torchcodec_gives_the_frames_asked_for(name, tmp_path, monkeypatch):
    file, how = FORMATS[name]
    path = write_barcode_video(tmp_path / file, **how)
    given = []

    def watched(*arguments):
        given.append(torchcodec_frames(*arguments))
        return given[-1]

    monkeypatch.setattr(decode, "torchcodec_frames", watched)
    for source in (path, path.read_bytes()):
        assert_random_clips(source, decoder="torchcodec", strict=False)
    decoded = sum(frames is not None for frames in given)
    assert decoded == 0 if name in COUNTED else decoded > 8  # of 16; PyAV reads the others
    expected, frames = (
        read_frames(path, [0, 21, 39], decoder=decoder, strict=False)
        for decoder in ("pyav", "torchcodec")
    )
    assert np.abs(expected.astype(int) - frames).mean() < 3  # colors are converted more roughly


@pytest.mark.usefixtures("torchcodec")
def test_torchcodec_on_odd_and_bad_files(tmp_path):
    options = {"decoder": "torchcodec", "strict_decoding": False}
    packed = write_packed_avi(tmp_path / "packed.avi")
    clip = [3, 6, 20, 40]
    assert [read_barcode(frame) for frame in read_frames(packed, clip, **options)] == clip
    path = write_barcode_video(tmp_path / "a.mp4", options=B_FRAMES)
    with pytest.raises(DecodeError, match=r"a\.mp4: no frame 40; .* frame 40"):
        read_frames(path, [0, 40], **options)
    upright = read_frames(path, [2, 30], **options)
    turned = read_frames(turn_clockwise(path), [2, 30], **options)
    np.testing.assert_array_equal(turned, np.rot90(upright, -1, axes=(1, 2)))
    (tmp_path / "page.mp4").write_text("<html>")
    with pytest.raises(DecodeError, match=r"page\.mp4: an HTML page"):
        read_frames(tmp_path / "page.mp4", [0], **options)


@pytest.mark.usefixtures("torchcodec")
@pytest.mark.parametrize("fault", ["late", "fails"])
def test_frames_that_torchcodec_gets_wrong_are_read_by_pyav(fault, tmp_path, monkeypatch):
    path = write_barcode_video(tmp_path / "a.mp4", options=B_FRAMES)
    real = decode._torchcodec_decoders().VideoDecoder

    class Wrong(real):
        def get_frames_at(self, indices):
            if fault == "fails":
                raise RuntimeError("no more frames")
            return super().get_frames_at([index - 1 for index in indices])

    monkeypatch.setattr(decode, "_torchcodec_decoders", lambda: SimpleNamespace(VideoDecoder=Wrong))
    frames = read_frames(path, [5, 9], decoder="torchcodec", strict=False)
    assert [read_barcode(frame) for frame in frames] == [5, 9]


def test_torchcodec_is_refused_where_it_cannot_serve(tmp_path, monkeypatch):
    path = write_barcode_video(tmp_path / "a.mp4", 2)
    with pytest.raises(ValueError, match=r"damaged data: .*strict_decoding=false"):
        read_frames(path, [0], decoder="torchcodec")
    with pytest.raises(ValueError, match=r"damaged data: .*strict_decoding=false"):
        ClipOptions(decoder="torchcodec")
    decode._torchcodec_decoders.cache_clear()
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ValueError, match=r"^decoder=torchcodec.*: pip install"):
        ClipOptions(decoder="torchcodec", strict_decoding=False)

    def broken(_):
        raise RuntimeError("Could not load libtorchcodec.\nA long story")

    monkeypatch.setattr(decode.importlib, "import_module", broken)
    with pytest.raises(ValueError, match=r"FFmpeg .*\(Could not load libtorchcodec"):
        ClipOptions(decoder="torchcodec", strict_decoding=False)


def test_every_start_and_stride_of_a_seekable_video(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4", options=B_FRAMES)
    for start in range(31):
        clip = list(range(start, 40, 3))
        assert [read_barcode(frame) for frame in read_frames(path, clip)] == clip


def test_packed_b_frames_in_avi(tmp_path):
    path = write_packed_avi(tmp_path / "a.avi")
    assert probe(path).frames == 41
    assert [read_barcode(frame.image) for frame in iterate_frames(path)] == list(range(41))
    for start in range(0, 33, 4):
        clip = [start, start + 3, start + 8]
        assert [read_barcode(frame) for frame in read_frames(path, clip)] == clip


def test_frames_are_counted_where_a_seek_goes_astray(tmp_path, monkeypatch):
    path = write_barcode_video(tmp_path / "a.mp4", options=B_FRAMES)
    seek = decode._from_sync_frame

    def skip(frames: int, *arguments):
        return islice(seek(*arguments), frames, None)

    for skipped in (1, 5, 99):
        monkeypatch.setattr(decode, "_from_sync_frame", partial(skip, skipped))
        clip = list(range(20, 35, 2))
        assert [read_barcode(frame) for frame in read_frames(path, clip)] == clip


def test_probe_reports_rate_and_codec(tmp_path):
    info = probe(write_barcode_video(tmp_path / "a.avi", fps=30, encoder="mpeg4"))
    assert (info.fps, info.codec) == (30, "mpeg4")
    assert read_timing(write_barcode_video(tmp_path / "b.mp4", fps=24))[1] == 24


def test_frames_come_in_the_order_of_the_indices_with_repeats(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4")
    frames = read_frames(path, [30, 3, 3, 12])
    assert frames.dtype == np.uint8
    assert frames.shape == (4, 64, 96, 3)
    assert [read_barcode(frame) for frame in frames] == [30, 3, 3, 12]


def test_the_rotation_a_phone_stores_is_applied(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4", frames=3)
    upright = read_frames(path, [2])[0]
    turned = turn_clockwise(path).read_bytes()
    assert (probe(turned).height, probe(turned).width) == (96, 64)
    np.testing.assert_array_equal(read_frames(turned, [2])[0], np.rot90(upright, -1))


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    for read in (probe, probe_header, lambda source: read_frames(source, [0])):
        with pytest.raises(DecodeError, match=r"a\.mp4: a pipe or device"):
            read(tmp_path / "a.mp4")


def test_reading_ends_at_the_time_limit(tmp_path, monkeypatch):
    path = write_barcode_video(tmp_path / "a.avi", encoder="mpeg4")
    now = iter(range(10_000))
    monkeypatch.setattr(container.time, "monotonic", lambda: next(now))  # a second for each look
    for read in (
        lambda limit: probe(path, time_limit=limit),
        lambda limit: read_frames(path, [39], time_limit=limit),
        lambda limit: list(iterate_frames(path, time_limit=limit)),
    ):
        with pytest.raises(DecodeError, match=r"a\.avi: reading .* of 9 s"):
            read(9)
        read(1000)


def test_the_callers_own_time_does_not_count(tmp_path, monkeypatch):
    path = write_barcode_video(tmp_path / "a.mp4", 4)
    now = 0.0
    monkeypatch.setattr(container.time, "monotonic", lambda: now)
    for _ in iterate_frames(path, time_limit=1):
        now += 1000


def test_the_header_tells_nearly_as_much(tmp_path):
    for file, encoder in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264")):
        path = write_barcode_video(tmp_path / file, encoder=encoder)
        assert probe_header(path) == probe(path)
    with pytest.raises(DecodeError, match="no video stream"):
        probe_header(write_audio(tmp_path / "sound.mp4"))


def test_frame_numbers_outside_the_video_are_refused(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4")
    with pytest.raises(DecodeError, match=r"a\.mp4: no frame 40; .* frame 40"):
        read_frames(path, [0, 40])
    with pytest.raises(DecodeError, match="no frame 90"):
        list(iterate_frames(path, 90))
    with pytest.raises(ValueError, match="must be 0 or more"):
        read_frames(path, [-1])
    with pytest.raises(ValueError, match="at least one"):
        read_frames(path, [])


BAD = {
    "empty": (b"", "the file is empty"),
    "garbage": (bytes(range(256)) * 40, "Invalid data"),
    "page": (b"\n<!DOCTYPE html><html>404</html>" * 20, "an HTML page, not a video"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_videos(name, tmp_path):
    data, cause = BAD[name]
    path = tmp_path / f"{name}.mp4"
    path.write_bytes(data)
    for read in (probe, lambda source: read_frames(source, [0]), lambda s: list(iterate_frames(s))):
        with pytest.raises(DecodeError, match=rf"{name}\.mp4: .*{cause}"):
            read(path)
        with pytest.raises(DecodeError, match=rf"video of {len(data)} bytes: .*{cause}"):
            read(data)


def test_missing_file_folder_and_sound_without_picture(tmp_path):
    with pytest.raises(DecodeError, match=r"none\.mp4: No such file"):
        probe(tmp_path / "none.mp4")
    with pytest.raises(DecodeError, match="a folder, not a file"):
        probe(tmp_path)
    with pytest.raises(DecodeError, match=r"sound\.mp4: no video stream"):
        probe(write_audio(tmp_path / "sound.mp4"))
    with pytest.raises(DecodeError, match=r"music\.mp4: no video stream"):
        probe(write_audio(tmp_path / "music.mp4", cover=True))


def test_cut_mp4_is_refused_and_cut_avi_reads_up_to_the_cut(tmp_path):
    whole = write_barcode_video(tmp_path / "a.mp4").read_bytes()
    with pytest.raises(DecodeError, match="Invalid data"):
        probe(whole[: len(whole) // 2])
    quick = write_barcode_video(tmp_path / "b.mp4", moov_first=True).read_bytes()
    with pytest.raises(DecodeError, match="the file is truncated"):
        probe(quick[: len(quick) * 2 // 3])
    avi = write_barcode_video(tmp_path / "c.avi", encoder="mpeg4").read_bytes()
    cut = avi[: (avi.index(b"movi") + avi.index(b"idx1")) // 2]
    with pytest.raises(DecodeError, match="cannot be decoded"):
        list(iterate_frames(cut))
    count = probe(cut, strict=False).frames
    assert 5 < count < 35
    numbers = [read_barcode(frame.image) for frame in iterate_frames(cut, strict=False)]
    assert numbers[:-1] == list(range(count - 1))  # the last frame is the one that was cut


def test_damaged_data_is_an_error_unless_allowed(tmp_path):
    path = write_barcode_video(tmp_path / "a.avi", encoder="mpeg4", options={"g": "12"})
    data = bytearray(path.read_bytes())
    middle = (data.index(b"movi") + data.index(b"idx1")) // 2
    data[middle : middle + 100] = bytes(byte ^ 0x55 for byte in data[middle : middle + 100])
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=r"a\.avi: cannot be decoded"):
        list(iterate_frames(path))
    assert len(list(iterate_frames(path, strict=False))) >= 39


def test_the_consumers_own_errors_pass_through(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4")

    def consume() -> None:
        for _ in iterate_frames(path):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        consume()


def test_string_paths_work(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4", frames=2)
    assert probe(str(path)) == probe(Path(path))
