"""Every frame asked for is the frame got, whatever the container; bad files say what is wrong."""

import random
import struct
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data import decode
from data.decode import DecodeError, frame_rate, iterate_frames, probe, read_frames
from tests.videos import read_barcode, write_audio, write_barcode_video, write_packed_avi

B_FRAMES = {"bf": "2", "g": "12"}
IRREGULAR = [n * 40 + n % 5 * 7 + (n > 20) * 500 for n in range(40)]
VP8 = {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"}
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
        {"encoder": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}},
    ),
    "variable frame rate": ("a.mp4", {"options": B_FRAMES, "pts": IRREGULAR}),
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
        assert [read_barcode(frame) for frame in iterate_frames(source)] == list(range(40))
        assert [read_barcode(frame) for frame in iterate_frames(source, 17, 30)] == list(
            range(17, 30)
        )
        draw = random.Random(0)
        for _ in range(4):
            clip = [draw.randrange(40) for _ in range(4)]
            assert [read_barcode(frame) for frame in read_frames(source, clip)] == clip


def test_every_start_and_stride_of_a_seekable_video(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4", options=B_FRAMES)
    for start in range(31):
        clip = list(range(start, 40, 3))
        assert [read_barcode(frame) for frame in read_frames(path, clip)] == clip


def test_packed_b_frames_in_avi(tmp_path):
    path = write_packed_avi(tmp_path / "a.avi")
    assert probe(path).frames == 41
    assert [read_barcode(frame) for frame in iterate_frames(path)] == list(range(41))
    for start in range(0, 33, 4):
        clip = [start, start + 3, start + 8]
        assert [read_barcode(frame) for frame in read_frames(path, clip)] == clip


def test_frames_are_counted_where_a_seek_goes_astray(tmp_path, monkeypatch):
    path = write_barcode_video(tmp_path / "a.mp4", options=B_FRAMES)
    seek = decode._from_keyframe

    def skip(frames: int, *arguments):
        return islice(seek(*arguments), frames, None)

    for skipped in (1, 5, 99):
        monkeypatch.setattr(decode, "_from_keyframe", partial(skip, skipped))
        clip = list(range(20, 35, 2))
        assert [read_barcode(frame) for frame in read_frames(path, clip)] == clip


def test_probe_reports_rate_and_codec(tmp_path):
    info = probe(write_barcode_video(tmp_path / "a.avi", fps=30, encoder="mpeg4"))
    assert (info.fps, info.codec) == (30, "mpeg4")
    assert frame_rate(write_barcode_video(tmp_path / "b.mp4", fps=24)) == 24


def test_frames_come_in_the_order_of_the_indices_with_repeats(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4")
    frames = read_frames(path, [30, 3, 3, 12])
    assert frames.dtype == np.uint8
    assert frames.shape == (4, 64, 96, 3)
    assert [read_barcode(frame) for frame in frames] == [30, 3, 3, 12]


def test_the_rotation_a_phone_stores_is_applied(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4", frames=3)
    upright = read_frames(path, [2])[0]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # 40 bytes of version, times, layer and volume before it
    clockwise = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = struct.pack(">9i", *clockwise)
    turned = bytes(data)
    assert (probe(turned).height, probe(turned).width) == (96, 64)
    np.testing.assert_array_equal(read_frames(turned, [2])[0], np.rot90(upright, -1))


def test_frame_numbers_outside_the_video_are_refused(tmp_path):
    path = write_barcode_video(tmp_path / "a.mp4")
    with pytest.raises(DecodeError, match=r"a\.mp4: no frame 40; it ends before frame 40"):
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
    with pytest.raises(DecodeError, match="Is a directory"):
        probe(tmp_path)
    with pytest.raises(DecodeError, match=r"sound\.mp4: no video stream"):
        probe(write_audio(tmp_path / "sound.mp4"))


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
    numbers = [read_barcode(frame) for frame in iterate_frames(cut, strict=False)]
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
