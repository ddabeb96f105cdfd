"""Statistics instead of real videos, several sets, the floor, memorized clips: by the command."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch.testing import assert_close

from common.files import read_json
from data.video.encode import write_video
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.classifier import ClassifierConfig, ClipClassifier
from eval.features.extractors import load_classifier
from eval.features.feature_cache import Extraction, FeatureSet, extract_features
from eval.features.statistics import load_statistics
from eval.metrics.frechet import frechet_distance, frechet_from_features, moments
from eval.protocols import fvd_config, memorization
from eval.report.items import Comparison, Table
from eval.results.memorization_section import memorization_section
from tests.builders.commands import run_script

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*clips. the distance is biased"),
    pytest.mark.filterwarnings("ignore:.*use equal numbers"),
    pytest.mark.filterwarnings("ignore:.*have the features of another"),
    pytest.mark.filterwarnings("ignore:.*holds only mean and covariance"),
]


def write_clips(folder: Path, count: int, seed: int, spread: int = 60) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(count):
        color = rng.integers(40, 200, (1, 1, 1, 3))
        noise = rng.integers(-spread, spread, (6, 32, 32, 3))
        clip = (color + noise).clip(0, 255).astype(np.uint8)
        write_video(folder / f"{i:02d}.mkv", clip, 8, codec="ffv1")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    for number, (name, count) in enumerate(
        {"real": 24, "fake": 8, "again": 8, "held_out": 24}.items()
    ):
        write_clips(folder / name, count, number, spread=20 if number in (1, 2) else 60)
    with torch.random.fork_rng():
        for seed, name in enumerate(("tiny", "other")):
            torch.manual_seed(seed)
            shape = ClassifierConfig(num_classes=3, width=8)
            ClipClassifier(shape).save_pretrained(folder / name)
    assert evaluate(folder, "real", fake=[], save_real=folder / "real.safetensors") == 0
    return folder


def evaluate(root: Path, real: str, fake=("fake",), **options) -> int:
    """Exit code of the command."""
    given = {"classifier": root / "tiny", "num_clips": 8, "resamples": 0} | options
    folders = [f"--fake={root / name}" for name in fake]
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    stride = [] if real.endswith("safetensors") else ["--frames=4", "--stride_real=1"]
    return run_script("eval_fvd.py", f"--real={root / real}", *folders, *flags, *stride)


def test_a_file_gives_the_same_result_as_the_videos(root, tmp_path):
    for name, real in (("videos", "real"), ("file", "real.safetensors")):
        assert evaluate(root, real, out=tmp_path / f"{name}.json", resamples=3) == 0
    videos, file = (read_json(tmp_path / f"{name}.json") for name in ("videos", "file"))
    assert file["real"].pop("statistics") == str(root / "real.safetensors")
    assert videos == file
    features = load_file(root / "real.safetensors")["features"]
    assert features.shape == (8, 32)


def test_a_file_of_another_network_protocol_or_size_is_refused(root, tmp_path, capsys):
    def refused(message: str, **options) -> None:
        assert evaluate(root, "real.safetensors", **options) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error, error

    refused("statistics with frames=4, but frames=5 (given)", frames=5)
    refused("statistics with start_real=random, but start_real=first", start_real="first")
    refused("made with name=tiny of network tiny, but this is other", classifier=root / "other")
    refused("made with the classifier tiny; give --classifier", classifier=None)
    refused("statistics of 8 clips, but num_clips_real=4", num_clips_real=4)
    refused("is already a file of statistics", save_real=tmp_path / "again.safetensors")
    refused("must end in .safetensors", save_real=tmp_path / "again.pkl")
    refused("half-size", fake=["half-size"])
    assert run_script("eval_fvd.py", f"--real={root / 'real'}") == 2
    assert "nothing to measure" in capsys.readouterr().err


def test_damaged_files_are_refused(root, tmp_path):
    path = tmp_path / "real.safetensors"
    good = (root / "real.safetensors").read_bytes()
    path.write_bytes(good[:-20])
    with pytest.raises(ValueError, match="eval_fvd --save_real, or damaged"):
        load_statistics(path)
    save_file({"a": np.zeros(1)}, path)
    with pytest.raises(ValueError, match="schema None, but this version reads 1"):
        load_statistics(path)
    path.write_bytes(good.replace(b'\\"schema\\": 1', b'\\"schema\\": 7'))
    with pytest.raises(ValueError, match="schema 7, but this version reads 1"):
        load_statistics(path)
    with pytest.raises(ValueError, match=r"none.pkl: no such file"):
        load_statistics(tmp_path / "none.pkl")
    arrays = load_file(root / "real.safetensors")
    with safe_open(root / "real.safetensors", framework="numpy") as file:
        record = file.metadata()
    for change, message in (
        ({"features": np.full_like(arrays["features"], np.nan)}, "a feature is not finite"),
        ({"features": arrays["features"][:, :7]}, r"a mean of 32 dimensions, features of .8, 7."),
        ({"mean": np.full(32, np.inf)}, "a moment is not finite"),
        ({"covariance": np.eye(31)}, r"a mean of 32 dimensions, a covariance of .31, 31."),
    ):
        save_file({**arrays, **change}, path, metadata=record)
        with pytest.raises(ValueError, match=message):
            load_statistics(path)


def test_other_weights_or_dimensions_under_the_same_name_are_refused_with_both(root):
    found = load_statistics(root / "real.safetensors")
    network = load_classifier(root / "tiny")
    found.check(network)
    other = replace(network, weights_sha256="ab" * 32)
    with pytest.raises(ValueError, match=rf"sha256={network.weights_sha256} .*sha256={'ab' * 32}"):
        found.check(other)
    with pytest.raises(ValueError, match="has 32 dimensions, but tiny gives 400"):
        found.check(replace(network, dimensions=400))


def sums(features: np.ndarray, **changes) -> dict:
    """What StyleGAN-V and cd-fvd pickle of features."""
    wide = features.astype(np.float64)
    return {
        "capture_all": False,
        "capture_mean_cov": True,
        "max_items": len(features),
        "num_items": len(features),
        "num_features": features.shape[1],
        "all_features": [],
        "raw_mean": wide.sum(axis=0),
        "raw_cov": wide.T @ wide,
        **changes,
    }


CDFVD = "i3d_ucf101_2048_res128_len16_skip1_seed0.pkl"
STYLEGAN_V = "ffs-i3d_torchscript-0123456789abcdef0123456789abcdef.pkl"


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_published_statistics_are_read_by_their_format(tmp_path, protocol):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(40, 6)) + 0.3
    path = tmp_path / CDFVD
    path.write_bytes(pickle.dumps(sums(real), protocol=protocol))
    found = load_statistics(path)
    assert (len(found), found.protocol.frames, found.protocol.stride) == (50, 16, 1)
    assert found.values["data_set"] == "UCF-101"
    assert (found.values["height"], found.values["preset"]) == (128, "i3d_videogpt")
    value = frechet_distance(found.mean, found.covariance, *moments(fake))
    assert value == pytest.approx(frechet_from_features(real, fake), rel=1e-9)
    if protocol == 3:  # names of numpy 1, as the published files have them
        path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
        np.testing.assert_array_equal(load_statistics(path).mean, found.mean)
    shutil.move(path, tmp_path / STYLEGAN_V)
    styled = load_statistics(tmp_path / STYLEGAN_V)
    assert styled.values == {"preset": "i3d_torchscript", "start_real": "random"}
    shutil.move(tmp_path / STYLEGAN_V, tmp_path / "renamed.pkl")
    with pytest.raises(ValueError, match="network and frames"):
        load_statistics(tmp_path / "renamed.pkl")


class Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_of_anything_else_is_never_executed(tmp_path):
    path, touched = tmp_path / CDFVD, tmp_path / "touched"
    for bad in (Touch(touched), {"raw_mean": Touch(touched)}, sums(np.eye(3), x=Touch(touched))):
        path.write_bytes(pickle.dumps(bad))
        with pytest.raises(ValueError, match=r"arrays and numbers .names "):
            load_statistics(path)
    assert not touched.exists()
    for bad, message in (
        ([1, 2], "holds a list"),
        ({"num_items": 3}, "not statistics of StyleGAN-V or cd-fvd"),
        (sums(np.eye(3), num_items=1), "1 clips"),
        (sums(np.eye(3), raw_cov=np.eye(4)), "not statistics|covariance of shape"),
        (sums(np.eye(3), raw_mean=np.full(3, np.nan)), "a moment is not finite"),
    ):
        path.write_bytes(pickle.dumps(bad))
        with pytest.raises(ValueError, match=message):
            load_statistics(path)
    path.write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="not a pickle of arrays"):
        load_statistics(path)


def test_several_sets_give_their_mean_and_spread(root, tmp_path, capsys):
    options = {"resamples": 2}
    for name in ("fake", "again"):
        assert evaluate(root, "real", [name], out=tmp_path / f"{name}.json", **options) == 0
    assert evaluate(root, "real", ["fake", "again"], out=tmp_path / "both.json", **options) == 0
    one, two, both = (read_json(tmp_path / f"{name}.json") for name in ("fake", "again", "both"))
    values = [one["value"], two["value"]]
    assert [run["value"] for run in both["runs"]] == values
    assert both["value"] == pytest.approx(np.mean(values))
    assert both["std"] == pytest.approx(np.std(values, ddof=1))
    assert (one["std_over"], both["std_over"]) == ("bootstrap", "sets")
    assert "mean and standard deviation of 2 sets" in capsys.readouterr().out
    write_clips(tmp_path / "fewer", 5, 9)
    assert evaluate(root, "real", ["fake", str(tmp_path / "fewer")]) == 2
    assert "Give sets of as many clips" in capsys.readouterr().err


def test_the_floor_is_real_against_real_at_this_number(root, tmp_path, monkeypatch, capsys):
    out, seen = tmp_path / "floor.json", []

    def spy(source: ClipSource, *arguments) -> FeatureSet:
        seen.extend(source.ids)
        return extract_features(source, *arguments)

    monkeypatch.setattr(fvd_config, "extract_features", spy)
    assert evaluate(root, "real", out=out, floor="true") == 0
    found = read_json(out)
    assert found["floor"]["clips"] == 8
    twice = ClipSource(root / "real", ClipProtocol(frames=4, num_clips=16), progress=False)
    assert seen == twice.ids[8:]  # the reference clips' features are there
    values = extract_features(twice, load_classifier(root / "tiny"), Extraction()).values
    assert found["floor"]["value"] == pytest.approx(frechet_from_features(values[:8], values[8:]))
    assert 0 < found["floor"]["value"] < found["value"]
    assert "between 8 real clips and as many others" in capsys.readouterr().out
    assert evaluate(root, "real.safetensors", out=out, floor="true") == 0
    assert read_json(out)["floor"]["clips"] == 4  # half of the eight that the file holds


def test_copies_of_training_clips_are_found(root, tmp_path):
    """Half of the generated clips are training clips; the others are new."""
    copies = tmp_path / "copies"
    shutil.copytree(root / "fake", copies)
    names = [f"{i:02d}.mkv" for i in range(4)]
    for name in names:
        shutil.copy(root / "real" / name, copies / name)
    options = {"held_out": root / "held_out", "num_clips_real": "all", "start_fake": "random"}
    outs = {}
    for name in ("fake", str(copies)):
        out = tmp_path / f"{Path(name).name}.json"
        # the starts of equal ids are drawn alike, so copies are exact
        assert evaluate(root, "real", [name], out=out, num_clips=24, **options) == 0
        outs[Path(name).name] = read_json(out)["memorization"]
    found = outs["copies"]
    assert found["clips_held_out"] == 24
    assert outs["fake"]["share"] < found["share"]
    assert found["share"] == pytest.approx(0.5)
    for pair in found["worst"][: len(names)]:
        assert pair["distance"] == 0
        assert pair["generated"] == pair["training"]
    json.dumps(found)

    # The page shows the pairs as the network saw them, or says why not
    section = memorization_section("copies", read_json(tmp_path / "copies.json"))
    table, *pairs = section.items
    assert isinstance(table, Table)
    assert [row[2] for row in table.rows] == [pair["distance"] for pair in found["worst"]]
    for number, pair in enumerate(pairs):
        assert isinstance(pair, Comparison)
        made, trained = pair.clips.values()
        assert made.shape == trained.shape == (4, 32, 32, 3)
        assert (made == trained).all() == (number < len(names))
    assert "50.0% of the generated clips" in section.intro[0]
    page = tmp_path / "page.html"
    results = [f"--results={tmp_path / name}.json" for name in ("copies", "fake")]
    assert run_script("report.py", *results, f"--out={page}") == 0
    assert "nearest training clip" in page.read_text()
    (copies / names[0]).unlink()
    gone = memorization_section("copies", read_json(tmp_path / "copies.json"))
    assert len(gone.items) == 1
    assert f"has no {names[0]} any more" in gone.items[0].notes[-1]


def test_a_stretch_is_decoded_once_and_holds_every_clip_that_begins_in_it(root, monkeypatch):
    protocol = ClipProtocol(frames=2, stride=2, skip=1, num_clips=4, height=16, width=16)
    source = ClipSource(root / "real", protocol, progress=False)
    for stretch, stretches in ((3, 3), (4, 2), (256, 1)):
        monkeypatch.setattr(memorization, "STRETCH", stretch)
        parts = memorization.Stretches(source, stride=1)
        assert len(parts) == len(source) * stretches
        found = [
            ((id, start), frames[:, places[row]])
            for id, starts, frames, places in (parts[i] for i in range(len(parts)))
            for row, start in enumerate(starts)
        ]
        assert [key for key, _ in found] == [
            (id, start) for id in source.ids for start in (1, 2, 3)
        ]
        for (id, start), clip in found:
            there = ClipSource(
                root / "real", replace(protocol, start="first", skip=start), progress=False
            )
            assert_close(clip, dict(there)[id], rtol=0, atol=0)  # type: ignore[call-overload]


def test_nearest_training_clips_are_found_wherever_they_begin(root, tmp_path, capsys):
    """By features and by pixels, and for held-out clips none is as near as for copies."""
    copies = tmp_path / "copies"
    shutil.copytree(root / "fake", copies)
    shutil.copy(root / "real" / "03.mkv", copies / "00.mkv")
    out = tmp_path / "out.json"
    options = {"held_out": root / "held_out", "num_clips_real": "all", "start_fake": "center"}
    assert evaluate(root, "real", [copies], out=out, **options, num_clips=24) == 0
    assert "nearest" not in read_json(out)["memorization"]
    options |= {"nearest_stride": 1, "num_clips": 24}
    assert evaluate(root, "real", [copies], out=out, **options) == 0
    found = read_json(out)["memorization"]["nearest"]
    pairs = {pair["clip"]: pair for pair in found["generated"]["pairs"]}
    copy = pairs.pop("00.mkv")
    assert (copy["distance"], copy["gray_levels"]) == (0, 0)
    assert copy["by_pixels"] == copy["by_features"] == ["03.mkv", copy["start"]]
    others = [*pairs.values(), *found["held_out"]["pairs"]]
    assert len(others) == 7 + 24
    assert min(pair["gray_levels"] for pair in others) > 0
    assert found["clips"] > 24  # several of each video
    del options["held_out"]
    assert evaluate(root, "real", [copies], out=out, **options) == 2
    assert "nearest_stride=1" in capsys.readouterr().err
