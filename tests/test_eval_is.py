"""The Inception Score command, with a classifier in place of C3D, and C3D's loading rules."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.files import write_json
from eval.clips.clip_protocol import ClipProtocol
from eval.clips.labels import write_labels
from eval.clips.source import ClipSource
from eval.features import extractors
from eval.features.extractors import load_c3d, load_classifier
from eval.features.feature_cache import Extraction, extract_features
from eval.metrics.inception_score import inception_score, max_inception_score
from eval.protocols.inception_protocol import (
    PROTOCOLS,
    ISProtocol,
    drawn_labels,
    evaluate_is,
    is_line,
)
from tests.builders.clip_folders import write_folder, write_folders
from tests.builders.commands import run_script

PLAIN = Extraction()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("folders"))


def command(folders: Path, *extra: object) -> int:
    """Exit code of the script on a folder of few clips."""
    arguments = ("--fake", folders / "fake", "--classifier", folders / "tiny", "--frames", 4)
    return run_script("eval_is.py", *arguments, *extra)


def test_command(folders, tmp_path, capsys):
    out = tmp_path / "is.json"
    extra = ("--real", folders / "real", "--num_clips", 2, "--runs", 2, "--out", out)
    assert command(folders, *extra) == 0
    result = json.loads(out.read_text())
    assert result["name"] == "is_tiny_2x2runs_1splits"
    assert 1 <= result["value"] <= result["ceiling"] + 0.1
    assert result["ceiling"] == max_inception_score(2, splits=1, classes=3)
    assert result["fake"]["skip"] == 1  # frame 0 of a video VAE's is dropped
    assert (result["real"]["num_clips"], result["real"]["runs"]) == (2, 2)
    line = capsys.readouterr().out
    assert "N = 2, 2 runs, 1 splits; a perfect classifier gives" in line
    assert "real clips" in line


def test_real_clips_at_another_rate_are_refused(folders, tmp_path, capsys):
    fast = write_folder(tmp_path / "fast", [0, 60, 120, 180], fps=25)
    out = tmp_path / "is.json"
    extra = ("--real", fast, "--num_clips", 2, "--runs", 2, "--out", out)
    assert command(folders, *extra) == 2
    assert (
        "real clips run at 25 frames/s (stride 1), generated ones at 8" in capsys.readouterr().err
    )
    assert not out.exists()
    assert command(folders, *extra, "--allow_rate_mismatch") == 0


def test_the_ceiling_is_that_of_the_labels_there_are(folders, tmp_path):
    shutil.copytree(folders / "fake", tmp_path / "fake")
    files = sorted(path.name for path in (tmp_path / "fake").iterdir())
    labels = dict(zip(files, [0, 1, 2, 1], strict=True))
    write_labels(tmp_path / "fake", labels, ["a", "b", "c"])
    clips = ClipProtocol(frames=4, num_clips=None)
    source = ClipSource(tmp_path / "fake", clips, progress=False)
    tiny = load_classifier(folders / "tiny", "probabilities")
    perfect = replace(tiny, run=Perfect([labels[id] for id in source.ids]))
    for protocol in (
        ISProtocol(num_clips=4),
        ISProtocol(num_clips=4, splits=2),
        ISProtocol(num_clips=2, runs=2),
    ):
        perfect.run.seen = 0
        result = evaluate_is(source, perfect, protocol, extraction=PLAIN)
        assert result["value"] == pytest.approx(result["ceiling"], rel=1e-5)
        assert (result["ceiling_labels"], result["accuracy"]) == ("known", 1)
        assert "on their labels" in is_line(result)
    shares = np.array([1, 2, 1]) / 4
    result = evaluate_is(source, tiny, ISProtocol(num_clips=4), extraction=PLAIN)
    assert result["ceiling"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))
    (tmp_path / "fake" / "samples.json").unlink()
    result = evaluate_is(source, tiny, ISProtocol(num_clips=4), extraction=PLAIN)
    assert (result["ceiling_labels"], result["accuracy"]) == ("random", None)
    assert "on random labels" in is_line(result)


class Perfect:
    """A classifier that knows each clip's label, by the order in which it gets them."""

    def __init__(self, labels: list[int]):
        self.labels, self.seen = labels, 0

    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        wanted = self.labels[self.seen : self.seen + len(video)]
        self.seen += len(video)
        return torch.eye(3)[wanted]


def test_too_few_clips_are_refused(folders, capsys):
    assert command(folders) == 2
    assert "the protocol needs 20480 (10 x 2048)" in capsys.readouterr().err
    assert command(folders, "--num_clips", 2, "--runs", 2, "--splits", 2) == 2
    assert "only one may exceed 1" in capsys.readouterr().err


def test_the_clips_of_several_seeds_are_not_pooled(tmp_path, capsys):
    """Their labels are recorded seed by seed, and so is what a perfect classifier would give."""
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        write_labels(tmp_path / f"seed-{seed}", {"a.mkv": 0}, ["a", "b"])
    assert run_script("eval_is.py", "--fake", tmp_path) == 2
    assert f"Give one of them, such as {tmp_path}/seed-0" in capsys.readouterr().err


def test_names_tell_the_protocol():
    assert {protocol.name for protocol in PROTOCOLS.values()} == {
        "2048x10runs",
        "10k_10splits",
        "2048_10splits",
    }
    assert ISProtocol(num_clips=2048).name == "2048x1runs_1splits"


def test_runs_score_clips_of_their_own(folders):
    extractor = load_classifier(folders / "tiny", "probabilities")
    clips = ClipProtocol(frames=4, start="first", num_clips=None)
    source = ClipSource(folders / "fake", clips, progress=False)
    rows = extract_features(source, extractor, PLAIN).values
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-6)
    result = evaluate_is(source, extractor, ISProtocol(num_clips=2, runs=2), extraction=PLAIN)
    runs = [inception_score(part, 1, None).mean for part in (rows[:2], rows[2:])]
    assert result["value"] == pytest.approx(np.mean(runs))
    assert result["std"] == pytest.approx(np.std(runs))
    with pytest.raises(ValueError, match="gives features"):
        evaluate_is(
            source, load_classifier(folders / "tiny"), ISProtocol(num_clips=2), extraction=PLAIN
        )


def test_fewer_real_clips_than_a_run_are_said_to_be(folders, tmp_path):
    extractor = load_classifier(folders / "tiny", "probabilities")
    few = write_folder(tmp_path / "few", [0, 90])
    clips = ClipProtocol(frames=4, num_clips=None)
    fake, real = (ClipSource(f, clips, progress=False) for f in (folders / "fake", few))
    result = evaluate_is(fake, extractor, ISProtocol(num_clips=4), real=real, extraction=PLAIN)
    assert result["real"]["num_clips"] == 2
    assert "only 2 real clips for 4 per run" in result["notes"][0]
    assert "no samples.json" in result["notes"][1]


@pytest.mark.parametrize(
    ("labels", "fewest", "note"),
    [
        ([i % 5 for i in range(200)], 40, None),
        ([3, 3, 3, 3], 0, None),  # four clips cannot tell
        (
            [i % 4 for i in range(200)],
            0,
            "(0 to 50 clips of each of 5 classes)",
        ),
        ([None] * 4, None, "none recorded"),
    ],
)
def test_labels_are_read_from_the_sampler_s_record(tmp_path, labels, fewest, note):
    clips = [{"file": f"{i}.mkv", "label": label} for i, label in enumerate(labels)]
    write_json(tmp_path / "samples.json", {"class_names": list("abcde"), "clips": clips})
    ids = [clip["file"] for clip in reversed(clips)]
    counts, notes = drawn_labels(SimpleNamespace(folder=tmp_path, ids=ids))  # type: ignore[arg-type]
    assert (counts and counts["fewest"]) == fewest
    assert [note in line for line in notes] == ([] if note is None else [True])


class Probabilities(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((x.shape[0], 101), 1 / 101)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_c3d_of_unknown_weights_gets_another_name(tmp_path, monkeypatch):
    monkeypatch.delenv("IVVAE_C3D", raising=False)
    path = tmp_path / "c3d.pt"
    torch.jit.save(torch.jit.script(Probabilities()), path)
    unknown = load_c3d(path)
    assert (unknown.score, unknown.published) == ("is_unverified", False)
    assert load_c3d(path, sha256=unknown.weights_sha256.upper()).score == "is"
    with pytest.raises(ValueError, match="its sha256 is"):
        load_c3d(path, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"none.npz: no such file.*TGANv2"):
        load_c3d(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="15 frames, but c3d needs 16"):
        unknown.features(torch.zeros(1, 3, 15, 8, 8))
    assert extractors.C3D.variable == extractors.C3D_TORCHSCRIPT.variable
