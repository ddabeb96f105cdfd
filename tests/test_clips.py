"""Clips for evaluation: which frames, from files and from shards, and what is refused."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data.video.encode import from_uint8, to_uint8, write_video
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from tests.builders.packed import pack
from tests.builders.videos import barcode_frame, read_barcode, write_barcode_video


def source(folder, generated=False, **protocol) -> ClipSource:
    return ClipSource(folder, ClipProtocol(**protocol), generated=generated, progress=False)


def numbers(clip: torch.Tensor) -> list[int]:
    return [read_barcode(frame) for frame in to_uint8(clip)]


def lossless(path, frames: int = 20, shade: int = 0, height: int = 64, fps: float = 25) -> None:
    images = np.stack([barcode_frame(i, height, 96, shade) for i in range(frames)])
    write_video(path, images, fps, codec="ffv1")


@pytest.fixture
def videos(tmp_path):
    """Three videos in class folders, and one that is too short for most protocols."""
    for i, name in enumerate(("a/x.mkv", "a/y.mkv", "b/x.mkv")):
        lossless(tmp_path / "videos" / name, shade=50 * i)
    lossless(tmp_path / "videos" / "b" / "short.mkv", frames=5)
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    (tmp_path / "videos" / ".cache").mkdir()
    (tmp_path / "videos" / ".cache" / "part.mp4").write_bytes(b"")
    return tmp_path / "videos"


def test_frames_are_those_of_the_protocol(videos):
    clips = source(videos, frames=4, stride=3, start="first", skip=1)
    assert sorted(clips.ids) == ["a/x.mkv", "a/y.mkv", "b/x.mkv"]
    assert clips.too_short == 1
    for _, clip in clips:
        assert numbers(clip) == [1, 4, 7, 10]
    centered = source(videos, frames=4, stride=3, start="center")
    assert all(numbers(clip) == [5, 8, 11, 14] for _, clip in centered)


def test_random_starts_depend_on_the_seed_and_the_video_only(videos):
    def starts(seed: int) -> dict[str, int]:
        clips = source(videos, frames=2, seed=seed)
        return dict(zip(clips.ids, clips.starts, strict=True))

    first = starts(0)
    assert [numbers(clip) for _, clip in source(videos, frames=2)] == [
        [first[id], first[id] + 1] for id in source(videos, frames=2).ids
    ]
    assert len({tuple(starts(seed).items()) for seed in range(5)}) == 5
    lossless(videos / "c.mkv")
    assert first.items() <= starts(0).items()


def test_pixels_are_exact(videos):
    clips = source(videos, frames=2, start="first")
    clip = dict(iter(clips))["a/y.mkv"]
    expected = np.stack([barcode_frame(i, shade=50) for i in range(2)])
    assert_close(clip, from_uint8(expected), rtol=0, atol=0)


def test_batches_hold_every_clip_once_whatever_the_workers(videos):
    clips = source(videos, frames=2)
    batches = list(clips.batches(3))
    assert [(first, len(ids)) for first, ids, _ in batches] == [(0, 3), (3, 1)]
    assert [id for _, ids, _ in batches for id in ids] == clips.ids
    with_workers = list(clips.batches(3, workers=1))
    for (_, ids_a, a), (_, ids_b, b) in zip(batches, with_workers, strict=True):
        assert ids_a == ids_b
        assert_close(a, b, rtol=0, atol=0)


def test_count_limits_and_null_takes_all(videos):
    two = source(videos, frames=2, num_clips=2)
    assert two.ids == source(videos, frames=2, num_clips=None).ids[:2]
    assert len(source(videos, frames=2, num_clips=None)) == 4
    assert two.describe()["videos"] == 4


def test_shards_and_sizes(tmp_path):
    shards = pack(tmp_path, [10, 30, 4, 12])
    clips = source(shards, frames=8, start="first", height=32, width=32)
    assert sorted(clips.ids) == ["video0", "video1", "video3"]
    assert clips.too_short == 1
    assert clips[0][1].shape == (3, 8, 32, 32)
    assert clips.describe()["kind"] == "shards"
    assert clips.describe()["clip_fps"] == 25


def test_content_changes_with_bytes_and_protocol(videos):
    before = source(videos, frames=2).content()
    assert source(videos, frames=2).content() == before
    assert source(videos, frames=3).content() != before
    lossless(videos / "a" / "x.mkv", shade=7)
    assert source(videos, frames=2).content() != before


def test_mixed_sizes_need_a_size(videos):
    lossless(videos / "tall.mkv", height=80)
    with pytest.raises(ValueError, match=r"size differs.*Give the height and width"):
        source(videos, frames=2)
    clips = source(videos, frames=2, height=48, width=48)
    assert {tuple(clip.shape) for _, clip in clips} == {(3, 2, 48, 48)}


def test_generated_videos_must_be_alike(tmp_path):
    lossless(tmp_path / "a.mkv")
    lossless(tmp_path / "b.mkv", frames=21)
    with pytest.raises(ValueError, match=r"length differs.*must be alike"):
        source(tmp_path, generated=True, frames=4)
    lossless(tmp_path / "b.mkv", fps=10)
    with pytest.raises(ValueError, match="frame rate differs"):
        source(tmp_path, generated=True, frames=4)
    lossless(tmp_path / "b.mkv", frames=3)
    with pytest.raises(ValueError, match=r"b.mkv has 3 frames.* needs 4"):
        source(tmp_path, generated=True, frames=4)


def test_lossy_generated_videos_bring_a_warning(tmp_path):
    write_barcode_video(tmp_path / "a.mp4")
    with pytest.warns(UserWarning, match=r"stored lossily \(h264\)"):
        source(tmp_path, generated=True, frames=4)
    source(tmp_path, frames=4)  # real ones are what they are


def test_bad_folders_and_protocols_are_refused(tmp_path, videos):
    with pytest.raises(ValueError, match="no such folder"):
        source(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no videos there"):
        source(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"4 videos has 97 frames \(17 at stride 6"):
        source(videos, frames=17, stride=6)
    (videos / "broken.mp4").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"broken.mp4.*HTML"):
        source(videos, frames=2, num_clips=None)
    with pytest.raises(ValueError, match="given together"):
        ClipProtocol(height=64)
    with pytest.raises(ValueError, match="stride=0"):
        ClipProtocol(stride=0)
    with pytest.raises(ValueError, match="num_clips=0"):
        ClipProtocol(num_clips=0)
