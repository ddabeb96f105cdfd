"""Files whose containers lie, leave something out or say something unusual; each made here."""

import av
import numpy as np
import pytest
from av.stream import Disposition

from data.video import decode
from data.video.container import DecodeError
from data.video.decode import iterate_frames, read_frames
from data.video.probe import check_frames, probe, probe_header, read_timing
from tests.builders.videos import (
    barcode_frame,
    damage_packet,
    drop_sync_table,
    read_barcode,
    set_display_matrix,
    write_audio,
    write_barcode_video,
)

LYING = {
    "mpeg4": ("a.mp4", {"encoder": "mpeg4"}),
    "mpeg4 in mov": ("a.mov", {"encoder": "mpeg4"}),
    "h263": ("a.3gp", {"encoder": "h263", "height": 96, "width": 128}),
    "msmpeg4": ("a.mov", {"encoder": "msmpeg4"}),
    "h264": ("a.mp4", {"encoder": "libx264"}),
}


@pytest.mark.parametrize("name", LYING)
def test_frames_are_right_where_all_frames_are_called_sync_frames(name, tmp_path):
    file, how = LYING[name]
    path = drop_sync_table(write_barcode_video(tmp_path / file, **how, options={"g": "12"}))
    in_sequence = [frame.image for frame in iterate_frames(path)]
    assert len(in_sequence) == 40
    for number in range(40):
        np.testing.assert_array_equal(read_frames(path, [number])[0], in_sequence[number])
    part = [frame.image for frame in iterate_frames(path, 20, 30)]
    np.testing.assert_array_equal(part, in_sequence[20:30])
    lenient = read_frames(path, [17, 30], strict=False, frames=40)
    np.testing.assert_array_equal(lenient, [in_sequence[17], in_sequence[30]])


def test_checking_compares_seeking_with_decoding_in_sequence(tmp_path, monkeypatch):
    options = {"g": "12"}
    path = drop_sync_table(
        write_barcode_video(tmp_path / "a.mp4", encoder="mpeg4", options=options)
    )
    true = write_barcode_video(tmp_path / "b.mp4", options={"g": "12", "bf": "2"})
    for source in (path, true, true.read_bytes()):
        assert check_frames(source) == (40, 64, 96)

    def trusting(video, timeline, first):
        video.container.seek(timeline.pts[first], stream=video.stream, backward=True)
        yield from decode.decoded_frames(video, None)

    monkeypatch.setattr(decode, "_from_sync_frame", trusting)
    with pytest.raises(DecodeError, match=r"a\.mp4: .*frame \d+ .*other pixels"):
        check_frames(path)


def test_true_sync_frames_save_decoding(tmp_path, monkeypatch):
    path = write_barcode_video(tmp_path / "a.mp4", 80, options={"g": "12", "bf": "2"})
    real, decoded = decode.decoded_frames, []

    def counted(*arguments):
        for frame in real(*arguments):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(decode, "decoded_frames", counted)
    assert read_barcode(read_frames(path, [70])[0]) == 70
    assert len(decoded) <= 12


@pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_all_eight_orientations(matrix, transposed, tmp_path):
    a, b, c, d = (0, matrix[0], matrix[3], 0) if transposed else matrix
    path = write_barcode_video(tmp_path / "a.mp4", 3)
    stored = read_frames(path, [2])[0]
    y, x = np.mgrid[: stored.shape[0], : stored.shape[1]]
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    shown = np.zeros((row.max() + 1, column.max() + 1, 3), np.uint8)
    shown[row, column] = stored
    set_display_matrix(path, a, b, c, d)
    np.testing.assert_array_equal(read_frames(path, [2])[0], shown)
    assert (probe(path).height, probe(path).width) == shown.shape[:2]


def test_a_rate_of_1000_in_the_header_gives_way_to_timestamps(tmp_path):
    thirty = [round(1000 * n / 30) for n in range(40)]
    vp8 = {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"}
    for file, how in {
        "a.mkv": {},
        "b.webm": {"encoder": "libvpx", "options": vp8},
        "c.flv": {"encoder": "flv1"},
    }.items():
        path = write_barcode_video(tmp_path / file, fps=1000, pts=thirty, **how)
        assert probe(path).fps == probe_header(path).fps == read_timing(path)[1] == 30
        assert probe_header(path).frames == 40
        assert "the header says 1000 frames per second, timestamps 30" in probe(path).notes


def test_a_variable_rate_is_noted_and_its_mean_is_that_of_the_timestamps(tmp_path):
    uneven = [20 * n if n < 20 else 400 + 200 * (n - 20) for n in range(40)]
    path = write_barcode_video(tmp_path / "a.mp4", pts=uneven)
    info = probe(path)
    assert info.fps == pytest.approx(39 / 4.2, rel=1e-3)
    assert info.notes[-1] == (
        "variable frame rate: frames last 0.02 to 0.2 s, 9.286 per second on average"
    )
    times = [frame.seconds or 0.0 for frame in iterate_frames(path)]
    np.testing.assert_allclose(times, np.array(uneven) / 1000)
    even = probe(write_barcode_video(tmp_path / "b.mkv", fps=30))
    assert (even.fps, even.notes) == (30, ())


def test_lengths_that_no_header_tells_are_counted(tmp_path):
    raw = write_barcode_video(tmp_path / "a.h264", options={"bf": "2"})
    assert (probe_header(raw).frames, probe_header(raw).fps) == (40, 25)
    live = tmp_path / "live.mkv"
    with av.open(str(live), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(barcode_frame(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe_header(live).frames == probe(live).frames == 30


def test_lenient_reading_gives_every_frame_that_can_be_decoded(tmp_path):
    options = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
    path = write_barcode_video(tmp_path / "a.webm", encoder="libvpx-vp9", options=options)
    damage_packet(path, 20)
    with pytest.raises(DecodeError, match=r"a\.webm: cannot be decoded"):
        list(iterate_frames(path))
    gaps = []
    frames = list(iterate_frames(path, strict=False, gaps=gaps))
    numbers = [read_barcode(frame.image) for frame in frames]
    info = probe(path, strict=False)
    assert 20 <= info.frames == len(numbers) < 40
    assert gaps
    assert any("gaps before frame 20" in note for note in info.notes)
    for known in (None, info.frames):
        for start in range(0, info.frames, 5):
            read = read_frames(path, [start, info.frames - 1], strict=False, frames=known)
            assert [read_barcode(frame) for frame in read] == [numbers[start], numbers[-1]]


def test_the_default_one_of_several_video_streams_is_read(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for number in range(2):
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64 + 32 * number, "yuv420p"
            stream.disposition = Disposition.default if number else Disposition(0)
            streams.append(stream)
        for number in range(20):
            for stream in streams:
                image = barcode_frame(number, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    assert probe(path).height == probe_header(path).height == read_frames(path, [9]).shape[1] == 96
    assert probe(path).notes == ("2 video streams; stream 1 is read, the default one",)


def test_what_cannot_be_decoded_is_named(tmp_path):
    unknown = write_barcode_video(tmp_path / "a.mkv", 3)
    unknown.write_bytes(unknown.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    for read in (probe, probe_header, lambda path: read_frames(path, [0])):
        with pytest.raises(DecodeError, match=r"a\.mkv: no decoder .*, V_MPEG4/ISO/XYZ$"):
            read(unknown)
    other = write_barcode_video(tmp_path / "b.avi", 3, encoder="mpeg4")
    other.write_bytes(other.read_bytes().replace(b"FMP4", b"ZZ9Q"))
    with pytest.raises(DecodeError, match=r"b\.avi: no decoder for its codec, ZZ9Q$"):
        probe(other)
    empty = write_audio(tmp_path / "c.mkv", empty_video=True)
    for read in (probe, lambda path: list(iterate_frames(path))):
        with pytest.raises(DecodeError, match=r"c\.mkv: no frame .*is empty"):
            read(empty)
