"""Clips: the right frames, policies for short videos, randomness from (seed, epoch, key) alone."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from common.pixels import to_float
from data.clips.dataset import ClipConfig, ClipDataset
from data.video.transforms import covering_size, fit
from tests.builders.packed import SHADES, pack
from tests.builders.videos import barcode_frame, read_barcode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed"), [40, 30, 9, 5, 60])


def clips(folder, seed=0, **options):
    sizes = {"frames": 5, "stride": 3, "height": 64, "width": 96}
    return ClipDataset(ClipConfig(folder=str(folder), **{**sizes, **options}), seed)


def numbers(video):
    return [read_barcode(frame) for frame in video.permute(1, 2, 3, 0).numpy()]


def test_a_clip_has_the_frames_at_the_stride_and_its_own_label(folder):
    dataset = clips(folder)
    assert [dataset.entry(i).key for i in range(len(dataset))] == ["video0", "video1", "video4"]
    for index, (video, frames) in enumerate([(0, 40), (1, 30), (4, 60)]):
        item = dataset[0, index]
        assert item["video"].shape == (3, 5, 64, 96)
        assert item["video"].dtype == torch.uint8
        assert numbers(item["video"]) == [item["start"] + 3 * i for i in range(5)]
        assert item["start"] + 12 < frames
        shade = item["video"][1, :, 40:].float().mean().item()
        assert round(shade / SHADES) == video
        assert (item["label"], item["key"], item["unreadable"]) == (video % 2, f"video{video}", [])


def test_starts_cover_the_video_to_its_last_frame(folder):
    dataset = clips(folder)
    starts = {dataset[epoch, 1]["start"] for epoch in range(120)}
    assert starts == set(range(30 - 12))


def test_a_central_clip_lies_in_the_middle(folder):
    item = clips(folder, start="center", crop="center")[3, 0]
    assert item["start"] == (40 - 13) // 2


def test_random_choices_follow_from_seed_epoch_and_key_alone(folder):
    options = {"flip": True, "height": 32, "width": 32}
    a, b, other = clips(folder, **options), clips(folder, **options), clips(folder, 1, **options)
    b[5, 0]  # what was read before does not matter
    torch.manual_seed(1)
    assert_close(a[1, 2]["video"], b[1, 2]["video"], rtol=0, atol=0)
    drawn = [(x["start"], x["flip"]) for x in (a[e, 2] for e in range(8))]
    assert len(set(drawn)) > 4
    assert drawn != [(x["start"], x["flip"]) for x in (other[e, 2] for e in range(8))]
    # the same sample gets the same clip when others are left out and its index changes
    fewer = clips(folder, frames=14, **options)
    more = clips(folder, frames=14, short_clips="loop", **options)
    assert_close(fewer[1, 1]["video"], more[1, 4]["video"], rtol=0, atol=0)


def test_a_flipped_clip_is_the_mirror_image(folder):
    dataset = clips(folder, flip=True)
    items = [dataset[epoch, 0] for epoch in range(40)]
    assert 10 <= sum(item["flip"] for item in items) <= 30
    plain = clips(folder)
    for epoch, item in enumerate(items[:6]):
        expected = plain[epoch, 0]["video"]
        assert_close(item["video"], expected.flip(-1) if item["flip"] else expected)


def test_skip_leaves_short_videos_out_before_indexing(folder, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = clips(folder, short_clips="skip")
    assert (len(dataset), dataset.left_out, dataset.shard_sizes) == (3, 2, [2, 0, 1])
    assert "2 of 5 videos are too short or small" in caplog.text


@pytest.mark.parametrize(
    ("size", "shown"),
    [({"height": 64, "width": 96}, ""), ({"height": 64, "width": 97}, "3 of 3 videos are smaller")],
)
def test_enlarging_is_warned_of_once(size, shown, folder, caplog):
    with caplog.at_level(logging.WARNING):
        clips(folder, **size)
    lines = [record.message for record in caplog.records if "enlarged" in record.message]
    assert len(lines) == bool(shown)
    assert all(shown in line for line in lines)


def test_loop_repeats_short_videos(folder):
    dataset = clips(folder, short_clips="loop")
    assert (len(dataset), dataset.left_out, dataset.shard_sizes) == (5, 0, [2, 2, 1])
    assert numbers(dataset[0, 2]["video"]) == [0, 3, 6, 0, 3]
    assert numbers(dataset[0, 3]["video"]) == [0, 3, 1, 4, 2]
    assert numbers(dataset[0, 0]["video"])[1] == dataset[0, 0]["start"] + 3  # long enough: as ever


def test_shrink_stride_reads_short_videos_at_the_largest_that_fits(folder):
    dataset = clips(folder, short_clips="shrink_stride")
    starts = [dataset[0, index]["start"] for index in range(5)]
    assert numbers(dataset[0, 2]["video"]) == [0, 2, 4, 6, 8]
    assert numbers(dataset[0, 3]["video"]) == [0, 1, 2, 3, 4]
    assert numbers(dataset[0, 4]["video"]) == [starts[4] + 3 * i for i in range(5)]
    assert clips(folder, short_clips="shrink_stride", frames=6).left_out == 1  # 5 frames never fit


def test_single_frames_are_images(folder):
    dataset = clips(folder, frames=1, stride=7, short_clips="shrink_stride")
    item = dataset[0, 3]
    assert len(dataset) == 5
    assert item["video"].shape == (3, 1, 64, 96)
    assert numbers(item["video"]) == [item["start"]]
    assert {dataset[epoch, 3]["start"] for epoch in range(60)} == set(range(5))


def test_nothing_usable_is_an_error_that_says_what_there_is(folder):
    with pytest.raises(ValueError, match=r"5 videos .*61 frames .* 60"):
        clips(folder, frames=61, stride=1)


def test_labels_without_a_name_are_refused(tmp_path):
    folder = pack(tmp_path, [9, 9])
    index = (folder / "index.json").read_text()
    (folder / "index.json").write_text(index.replace('"a", "b"', '"a"'))
    with pytest.raises(ValueError, match="label 1, but there are 1 class names"):
        clips(folder, short_clips="loop")


def test_unlabeled_videos_have_label_minus_one(tmp_path):
    assert clips(pack(tmp_path, [9], class_names=()), short_clips="loop")[0, 0]["label"] == -1


def test_an_unreadable_video_stops_at_once_unless_some_are_allowed(tmp_path, caplog):
    folder = pack(tmp_path, [13] * 4, broken=[1])
    with pytest.raises(ValueError, match=r"video1: .* 1 unreadable of 4.*max_error_fraction=0"):
        clips(folder)[0, 1]
    lenient = clips(folder, max_error_fraction=0.25)
    item = lenient[0, 1]
    assert item["key"] != "video1"
    assert [key for key, _ in item["unreadable"]] == ["video1"]
    again = clips(folder, max_error_fraction=0.25)
    again[0, 3]
    assert_close(again[0, 1]["video"], item["video"], rtol=0, atol=0)
    lenient[5, 1]
    assert list(lenient.unreadable.reasons) == ["video1"]  # counted once
    assert caplog.text.count("video1: skipped") == 2  # once per data set


def test_a_data_set_with_nothing_readable_gives_up(tmp_path):
    folder = pack(tmp_path, [13] * 2, broken=[0, 1])
    with pytest.raises(ValueError, match="2 unreadable of 2"):
        clips(folder, max_error_fraction=0.5)[0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames=0 must be at least 1"),
        ({"width": -8}, "width=-8"),
        ({"max_error_fraction": 1.0}, "max_error_fraction=1.0 must be below 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClipConfig(folder="x", **options)


def test_fit_keeps_frames_of_the_right_size_exact():
    frames = torch.from_numpy(np.stack([barcode_frame(i) for i in range(3)]))
    assert np.array_equal(fit(frames, 64, 96).permute(1, 2, 3, 0), frames)


def test_fit_keeps_the_aspect_and_crops_where_asked():
    frames = torch.zeros(1, 20, 40, 3, dtype=torch.uint8)
    frames[:, :, :20] = 255  # left half white
    left, middle, right = (
        to_float(fit(frames, 10, 10, crop=(0.5, x)))[0, 0] for x in (0.0, 0.5, 1.0)
    )
    assert left.shape == (10, 10)
    assert (left[:, :8] == 1).all()
    assert (right[:, -8:] == -1).all()
    assert middle.mean().abs() < 0.02
    assert (middle[:, :3] == 1).all()
    assert (middle[:, -3:] == -1).all()


def test_zoom_shows_less_and_enlarges_nothing():
    frames = torch.zeros(1, 24, 48, 3, dtype=torch.uint8)
    frames[:, 6:18, 18:30] = 255  # a white square, a quarter of the crop at zoom 1
    shares = [to_float(fit(frames, 8, 8, zoom=zoom)).add(1).mean() / 2 for zoom in (1, 1.5, 2)]
    assert [share.item() for share in shares] == pytest.approx([1 / 4, 9 / 16, 1], abs=0.03)
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 24, 48, 3), np.uint8))
    for zoom in (3, 5):  # 3 is their own size: pixels stay as they are
        fitted = fit(noise, 8, 8, crop=(0.0, 1.0), zoom=zoom)
        assert np.array_equal(fitted.permute(1, 2, 3, 0), noise[:, :8, -8:])
    assert np.array_equal(fit(noise, 48, 48, zoom=4), fit(noise, 48, 48))


def test_zoom_is_drawn_anew_and_changes_no_other_draw(folder):
    plain, zoomed = (
        clips(folder, height=16, width=16),
        clips(folder, height=16, width=16, max_zoom=3.0),
    )
    draws = [zoomed[epoch, 0] for epoch in range(8)]
    assert [draw["start"] for draw in draws] == [plain[epoch, 0]["start"] for epoch in range(8)]
    assert not torch.equal(draws[0]["video"], plain[0, 0]["video"])
    random = [torch.Generator().manual_seed(seed) for seed in range(200)]
    zooms = torch.tensor([zoomed.config.choose(0, each)[-1] for each in random])
    assert 1 <= zooms.min() < 1.1
    assert 2.7 < zooms.max() <= 3
    assert (zooms < 3**0.5).double().mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_fit_is_antialiased(filter):
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    fitted = to_float(fit(stripes, 16, 16, filter=filter))
    assert fitted[..., 2:-2].abs().max() < 0.03  # gray, not stripes


def test_covering_sizes():
    assert covering_size(240, 320, 256, 256) == (256, 341)
    assert covering_size(320, 240, 256, 256) == (341, 256)
    assert covering_size(720, 1280, 256, 256) == (256, 455)
    assert covering_size(64, 96, 32, 48) == (32, 48)
    assert covering_size(100, 301, 50, 150) == (50, 150)
    assert covering_size(8, 8, 64, 16) == (64, 64)


def test_configs_are_values():
    config = ClipConfig(folder="x", frames=17, stride=3)
    assert config.span == 49
    assert replace(config, frames=1).span == 1
