"""Named protocols: what they fix, what they refuse, and which published scores compare."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import parse
from data.video.encode import write_video
from eval.published.named_protocols import DEFAULTS, PROTOCOLS, resolve
from eval.published.scores import SCORES, compare, published_beside
from scripts import report
from scripts.eval_fvd import EvalFVD
from tests.builders.commands import run_script
from tests.builders.videos import barcode_frame

PATHS = ["--real=real", "--fake=fake"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_makes_a_command(name):
    config = parse(EvalFVD, [*PATHS, f"--protocol={name}"])
    values = resolve(config.given(), name)
    assert values.keys() == DEFAULTS.keys()
    assert values == {**DEFAULTS, **PROTOCOLS[name].values}
    for field, value in PROTOCOLS[name].values.items():  # what it fixes may be said again
        again = parse(EvalFVD, [*PATHS, f"--protocol={name}", f"--{field}={value}"])
        assert resolve(again.given(), name) == values
    assert PROTOCOLS[name].unknown  # nobody states the seeds


def test_a_flag_adds_to_a_protocol_and_never_contradicts_it():
    with pytest.raises(ValueError, match=r"stride_real=1 .*protocol=latte_sky"):
        parse(EvalFVD, [*PATHS, "--protocol=latte_sky", "--stride_real=1"])
    with pytest.raises(ValueError, match=r"num_clips=all .* num_clips=2048"):
        parse(EvalFVD, [*PATHS, "--protocol=tats", "--num_clips=all"])
    with pytest.raises(ValueError, match=r"classifier=c .*preset=i3d_torchscript"):
        parse(EvalFVD, [*PATHS, "--protocol=latte_sky", "--classifier=c"])
    with pytest.raises(ValueError, match=r"protocol=latte: .*stylegan_v"):
        parse(EvalFVD, [*PATHS, "--protocol=latte"])
    config = parse(EvalFVD, [*PATHS, "--protocol=larp_128", "--stride_real=2"])
    assert resolve(config.given(), "larp_128")["stride_real"] == 2


def test_published_scores_have_a_protocol_of_their_data_set():
    for score in SCORES:
        if score.protocol:
            assert (
                PROTOCOLS[score.protocol].values.get("data_set", score.data_set) == score.data_set
            )
    # As their papers state them, or papers and READMEs that quote them, which `source` names
    stated = {
        ("Latte", "FaceForensics"): 34.0,
        ("Latte", "SkyTimelapse"): 59.8,
        ("Latte", "UCF-101"): 478.0,
        ("Latte + LeanVAE (z 4)", "SkyTimelapse"): 49.59,
        ("Latte + LeanVAE (z 16)", "SkyTimelapse"): 95.15,
        ("Latte + LeanVAE (z 4)", "UCF-101"): 164.45,
        ("Latte + LeanVAE (z 16)", "UCF-101"): 175.33,
        ("AR-Diffusion", "UCF-101"): 186.6,
        ("AR-Diffusion", "SkyTimelapse"): 40.8,
        ("AR-Diffusion", "FaceForensics"): 71.9,
        ("FAR-L", "UCF-101"): 113,
        ("LARP-L-Long", "UCF-101"): 57,
        ("IV-VAE", "UCF-101"): 557.5,
    }
    found = {(score.method, score.data_set): score for score in SCORES if score.metric == "fvd"}
    assert {row: found[row].value for row in stated} == stated
    assert all(score.source and score.setting for score in SCORES)
    far, larp = found["FAR-L", "UCF-101"], found["LARP-L-Long", "UCF-101"]
    assert (far.std, far.setting) == (3.6, "class-conditional, 256x256")
    assert "128x128" in larp.setting


def result(name: str, **changes) -> dict:
    """What a run by this protocol leaves, as far as comparisons read it."""
    values = {**DEFAULTS, **PROTOCOLS[name].values, **changes}
    clips = values.pop("num_clips")
    real = values.pop("num_clips_real")
    network = {"name": values.pop("preset"), "published_weights": changes.get("published", True)}
    real = {"same": clips, "all": 9537}.get(real, real)
    sides = {"clips_fake": changes.get("clips_fake", clips), "clips_real": real}
    return {
        "kind": "fvd",
        "protocol": {**values, **sides, "network": network},
        "real": {"videos": 9600, "too_short": 60, "unreadable": {"a": "", "b": "", "c": ""}},
    }


def test_a_run_by_a_protocol_compares_with_its_own_rows_alone():
    found = {each["method"]: each for each in compare(result("latte_ucf101"))}
    assert found["Latte"]["why_not"] == []
    assert "the seeds" in found["Latte"]["unknown"][0]
    assert found["AR-Diffusion"]["why_not"] == ["its protocol is not stated"]
    assert found["StyleGAN-V"]["why_not"] == ["stride_real 1 there, 3 here"]
    assert "start_real first there, random here" in found["FAR-L"]["why_not"]
    assert "height 128 there, 256 here" in found["TATS-base"]["why_not"]
    assert {name for name, each in found.items() if each["compares"]} >= {"Latte"}
    assert compare(result("latte_ucf101", data_set=None)) == []


@pytest.mark.parametrize(
    ("name", "method", "missing"),
    [
        ("ivvae_table2", "IV-VAE", "stride_real, stride_fake, num_clips, preset"),
        ("larp_128", "LARP-L-Long", "stride_real, preset"),
    ],
)
def test_a_score_whose_protocol_is_half_known_compares_with_none(name, method, missing):
    """Even where all that is known of it agrees."""
    ours = result(name, data_set="UCF-101", num_clips=10_000)
    (found,) = (row for row in compare(ours) if row["method"] == method)
    assert found["why_not"] == [f"not known there: {missing}"]
    assert method not in [row.cells[0] for row in published_beside(ours, 3)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"published": False}, "ours was not measured with the published weights"),
        ({"clips_fake": 100}, "num_clips 2048 there, 100 here"),
        ({"num_clips_real": 512}, "num_clips_real 2048 there, 512 here"),
        ({"split": "test"}, "split train+test there, test here"),
        ({"preset": "i3d_videogpt"}, "preset i3d_torchscript there, i3d_videogpt here"),
    ],
)
def test_what_differs_is_told(changes, reason):
    (latte,) = (
        each for each in compare(result("latte_ucf101", **changes)) if each["method"] == "Latte"
    )
    assert reason in latte["why_not"]


class Pooled(torch.nn.Module):
    """Stands in for the TorchScript program of I3D: same call, small features."""

    def forward(
        self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool
    ) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool3d(x, (2, 2, 2)).flatten(1)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "i3d_torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Pooled()), path)
    return path


@pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
@pytest.mark.filterwarnings("ignore:.*smaller than 256 x 256 pixels and were enlarged")
def test_the_command_by_a_protocol_and_the_page(program, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for side, count in (("real", 46), ("fake", 16)):
        for shade in (0, 60, 120):
            clip = np.stack([barcode_frame(i, 32, 40, shade) for i in range(count)]).astype(int)
            clip = (clip + rng.integers(-20, 20, clip.shape)).clip(0, 255).astype(np.uint8)
            rate = 24 if side == "real" else 8
            write_video(tmp_path / side / f"{shade}.mkv", clip, rate, codec="ffv1")
    out = tmp_path / "fvd.json"
    options = [f"--real={tmp_path / 'real'}", f"--fake={tmp_path / 'fake'}", f"--out={out}"]
    options += ["--protocol=latte_sky", f"--weights={program}", "--allow_unknown_weights"]
    assert run_script("eval_fvd.py", *options) == 0
    found = json.loads(out.read_text())
    assert found["name"] == "fvd3_16f_unverified"
    protocol = found["protocol"]
    assert (protocol["data_set"], protocol["split"]) == ("SkyTimelapse", "train")
    assert (protocol["stride_real"], protocol["height"]) == (3, 256)
    assert found["named_protocol"] == "latte_sky"
    latte = next(row for row in found["published"] if row["method"] == "Latte")
    assert not latte["compares"]
    assert latte["why_not"] == [
        "ours was not measured with the published weights",
        "num_clips 2048 there, 3 here",
    ]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("does not compare with Latte 59.8 (Ma et al.") for line in lines)
    # the page: no published row beside a score that compares with none
    page = tmp_path / "page.html"
    report.run(report.MakeReport(results=[str(out)], out=str(page)))
    assert "Latte" not in page.read_text().partition("<table")[2]
    found["protocol"]["network"]["published_weights"] = True
    found["protocol"] |= {"clips_fake": 2048, "clips_real": 2048}
    out.write_text(json.dumps(found))
    report.run(report.MakeReport(results=[str(out)], out=str(page)))
    table = page.read_text().partition("<table")[2].partition("</table>")[0]
    assert "Latte" in table
    assert "59.80" in table
    assert "AR-Diffusion" not in table
