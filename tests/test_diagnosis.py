"""How far slips move a score: by the command, and each slip against its definition."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.files import read_json
from data.video.decode import read_frames
from data.video.encode import from_uint8, to_uint8, write_video
from data.video.probe import probe
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.classifier import ClassifierConfig, ClipClassifier
from eval.features.extractors import Extractor, load_classifier
from eval.features.feature_cache import Extraction, extract_features
from eval.metrics.frechet import frechet_from_features
from eval.protocols.diagnosis import (
    QUALITY,
    Impossible,
    batch_mean,
    diagnose,
    truncated,
    with_other_eps,
)
from tests.builders.commands import run_script

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*clips. the distance is biased"),
    pytest.mark.filterwarnings("ignore:.*stored lossily"),
    pytest.mark.filterwarnings("ignore:.*have the features of another"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Real videos are wider than the clips; both move, at a rate that tells strides apart."""
    folder = tmp_path_factory.mktemp("diagnosis")
    rng = np.random.default_rng(0)
    for name, count, shape, rate in (
        ("real", 12, (12, 32, 48, 3), 24),
        ("fake", 8, (4, 32, 32, 3), 8),
    ):
        for i in range(count):
            brighter = 5 * np.arange(shape[0])[:, None, None, None]
            color = rng.integers(40, 160, (1, 1, 1, 3)) + brighter
            clip = (color + rng.integers(-30, 30, shape)).clip(0, 255).astype(np.uint8)
            write_video(folder / name / f"{i:02d}.mkv", clip, rate, codec="ffv1")
            if name == "fake":
                write_video(folder / "lossy" / f"{i:02d}.mp4", clip, 25, quality=QUALITY)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = ClassifierConfig(num_classes=3, width=8)
        ClipClassifier(shape).save_pretrained(folder / "tiny")
    return folder


def score(root, out, real="real", fake="fake", **options) -> dict:
    given = {"classifier": root / "tiny", "frames": 4, "num_clips": 8, "resamples": 0}
    given |= {"stride_real": 3, "height": 32, "width": 32, "out": out} | options
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    assert run_script("eval_fvd.py", f"--real={root / real}", f"--fake={root / fake}", *flags) == 0
    return read_json(out)


def test_every_slip_gives_the_score_that_it_would_have_given(root, tmp_path, capsys):
    out, kept = tmp_path / "result.json", tmp_path / "features"
    result = score(root, out, diagnose="true", feature_cache=kept)
    printed = capsys.readouterr().out
    rows = {row["slip"]: row for row in result["diagnosis"]}
    for name, row in rows.items():
        assert name in printed
        assert (row["value"] is None) == (row["why_not"] is not None)
    values = [row["value"] for row in rows.values()]
    none, stride, lossy, cut, stretched, resize, port, half, twice, batches = values
    assert none == pytest.approx(result["value"], rel=1e-9)
    assert rows["mean over batches of two clips"]["ratio"] == pytest.approx(batches / none)

    # The same by hand
    other = score(root, out, stride_real=1, allow_rate_mismatch="true")
    assert stride == pytest.approx(other["value"], rel=1e-4)
    other = score(root, out, fake="lossy", allow_rate_mismatch="true")
    assert lossy == pytest.approx(other["value"], rel=1e-4)
    assert half == pytest.approx(score(root, out, num_clips=4)["value"], rel=1e-4)
    for name, change, expected in (
        ("real", lambda id, clip: stretched_frames(clip), stretched),
        ("fake", lambda id, clip: to_uint8(truncated(id, from_uint8(clip))), cut),
    ):
        for path in (root / name).iterdir():
            clip = change(path.name, read_frames(path, range(probe(path).frames)))
            file = tmp_path / f"{name}_changed" / path.name
            write_video(file, clip, 24 if name == "real" else 8, codec="ffv1")
        sides = {name: tmp_path / f"{name}_changed"}
        assert expected == pytest.approx(score(root, out, **sides)["value"], rel=1e-4)
    fake = ClipSource(root / "fake", ClipProtocol(frames=4, num_clips=8), progress=False)
    for id in fake.ids[:4]:
        for copy in ("a", "b"):
            (tmp_path / "twice").mkdir(exist_ok=True)
            shutil.copy(root / "fake" / id, tmp_path / "twice" / f"{copy}{id}")
    other = score(root, out, fake=tmp_path / "twice")
    assert twice == pytest.approx(other["value"], rel=1e-4)
    assert min(abs(x / none - 1) for x in (stride, lossy, cut, stretched, twice, batches)) > 1e-4

    # What cannot be done says why
    assert (resize, port) == (None, None)
    assert (
        rows["the other port of I3D (eps of its batch norms)"]["why_not"]
        == "tiny has no other port"
    )
    saved = tmp_path / "real.safetensors"
    score(root, out, save_real=saved)
    rows = score(root, out, real=saved, diagnose="true", frames=None, stride_real=None)["diagnosis"]
    reasons = {row["slip"]: row["why_not"] for row in rows}
    assert reasons["real frames stretched instead of cropped"] == "real.safetensors holds no videos"
    assert reasons["half of the clips"] is None


def stretched_frames(frames: np.ndarray) -> np.ndarray:
    """`t h w 3` at the size of the clips, borders and all."""
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    video = nn.functional.interpolate(video, [32, 32], mode="bicubic", antialias=True)
    return video.permute(0, 2, 3, 1).contiguous().numpy()


def test_another_resize_and_another_port_give_the_scores_of_that_network(root):
    """By a small network in I3D's place, for clips that are not square."""
    torch.manual_seed(0)
    layers = nn.Conv3d(3, 6, (1, 32, 32), (1, 32, 32)), nn.BatchNorm3d(6, eps=1e-3)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()
    layers[1].running_var.fill_(1e-3)
    extractor = Extractor(
        name="i3d_tf",
        network=network,
        run=network,
        weights_sha256="0" * 64,
        published=False,
        score="fvd_unverified",
        dimensions=6,
        resize="stretch",
    )
    clips = ClipProtocol(frames=4, num_clips=12, start="first", height=32, width=48)
    real = ClipSource(root / "real", clips, progress=False)
    fake = ClipSource(root / "real", replace(clips, noise=0.5), progress=False)
    quiet = Extraction()

    def distance(network: Extractor) -> float:
        sides = (extract_features(side, network, quiet).values for side in (real, fake))
        return frechet_from_features(*sides)

    rows = diagnose(real, extract_features(real, extractor, quiet), fake, extractor, quiet)
    found = {row["slip"]: row["value"] for row in rows}
    none, resize, port = (
        next(value for name, value in found.items() if name.startswith(start))
        for start in ("none", "frames cropped for the network", "the other port")
    )
    assert none == pytest.approx(distance(extractor))
    assert resize == pytest.approx(distance(replace(extractor, resize="crop")))
    assert port == pytest.approx(distance(with_other_eps(extractor)))
    assert abs(resize / none - 1) > 1e-3
    assert port == pytest.approx(none * (1e-3 + 1e-3) / (1e-3 + 1e-5), rel=1e-4)


@pytest.mark.parametrize(("dim", "std", "gap"), [(1, 1.0, 0.0), (6, 1.5, 2.0), (40, 0.5, 1.0)])
def test_means_over_batches_of_two_have_the_bias_of_the_closed_form(dim, std, gap):
    rng = np.random.default_rng(0)
    a, b = (std * rng.normal(size=(8000, dim)) for _ in range(2))
    b[:, 0] += gap
    gammas = math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    expected = gap**2 + 2 * dim * std**2 - 2 * std**2 * gammas / math.sqrt(math.pi)
    assert batch_mean(a, b, frechet_from_features) == pytest.approx(expected, rel=0.04)
    assert frechet_from_features(a, b) == pytest.approx(gap**2, abs=0.05 * expected)


def test_truncation_darkens_half_of_the_pixels_by_one_level():
    frames = np.random.default_rng(0).integers(1, 256, (4, 40, 40, 3), dtype=np.uint8)
    clip = from_uint8(frames)
    steps = ((truncated("a", clip) - clip) * 127.5).round()
    assert set(steps.unique().tolist()) == {-1.0, 0.0}
    assert steps.mean().item() == pytest.approx(-0.5, abs=0.02)
    assert truncated("a", torch.full((3, 2, 4, 4), -1.0)).min() == -1


def test_the_other_port_has_its_eps_and_leaves_the_first_alone(root):
    network = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4, eps=1e-3)).eval()
    first = replace(load_classifier(root / "tiny"), name="i3d_tf", network=network, run=network)
    other = with_other_eps(first)
    assert other.name != first.name  # features are kept apart
    assert (first.network[1].eps, other.network[1].eps) == (1e-3, 1e-5)
    assert other.run is other.network
    with pytest.raises(Impossible, match="tiny has no other port"):
        with_other_eps(replace(first, name="tiny"))
