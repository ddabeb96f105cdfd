"""Scores of held-out clips during training: their networks, and what is left out and said."""

import re

import pytest
import torch
import torchvision
from torch.testing import assert_close

from common.accelerator import make_accelerator
from common.files import read_json, write_json
from common.perceptual import load_lpips
from data.clips.dataset import ClipConfig, ClipDataset
from eval.features.classifier import ClassifierConfig, ClipClassifier
from eval.features.extractors import load_classifier
from eval.features.metric_networks import NetworkConfig
from eval.metrics.frechet import frechet_from_features
from eval.protocols.training_scores import HeldOut
from tests.builders.packed import pack
from tests.builders.processes import run_ranks

SIZE = {"frames": 5, "height": 32, "width": 32}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Clips, AlexNet's features at random and a small classifier."""
    folder = tmp_path_factory.mktemp("held_out")
    torch.manual_seed(0)
    features = torchvision.models.alexnet().features.state_dict()
    torch.save({f"features.{name}": value for name, value in features.items()}, folder / "alex.pth")
    ClipClassifier(ClassifierConfig(num_classes=2, width=8)).save_pretrained(folder / "small")
    pack(folder, [12, 14, 16])
    return folder


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """A machine that has no weights anywhere."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def held_out(files, networks, count=3, **size):
    config = ClipConfig(folder=str(files / "shards"), start="center", crop="center", **SIZE | size)
    return HeldOut(ClipDataset(config, seed=0), count, 4, networks)


def test_lpips_and_rfvd_are_those_of_the_whole_set(files, no_weights):
    networks = NetworkConfig(
        lpips="alex", lpips_alex=str(files / "alex.pth"), classifier=str(files / "small")
    )
    clips = held_out(files, networks)
    found = clips.scores(lambda x: 0.5 * x, CPU)
    assert list(found)[-2:] == ["ssim_margin", "rfvd3_5f_small"]
    video = torch.cat([clips.clip(i, CPU) for i in range(3)])
    lpips = load_lpips("alex", files / "alex.pth")(video, 0.5 * video)
    assert_close(found["lpips_alex_unverified"], lpips.mean().item(), rtol=1e-5, atol=0)
    features = [load_classifier(files / "small").features(x).numpy() for x in (video, 0.5 * video)]
    assert_close(found["rfvd3_5f_small"], frechet_from_features(*features), rtol=1e-5, atol=0)
    again = clips.scores(lambda x: x, CPU)
    assert again["psnr"] == 100
    assert again["lpips_alex_unverified"] == 0
    assert again["rfvd3_5f_small"] < 1e-9


def score_in_process(files, networks, folder):
    """Scores by one of several processes, and the clips that it read."""
    rank = make_accelerator().process_index
    clips, seen = held_out(files, networks), []
    clip = clips.clip
    clips.clip = lambda index, device: (seen.append(index), clip(index, device))[1]
    write_json(
        folder / f"{rank}.json", {"scores": clips.scores(lambda x: 0.5 * x, CPU), "seen": seen}
    )


def test_processes_share_the_clips_and_get_the_scores_of_one(files, no_weights, tmp_path):
    networks = NetworkConfig(
        lpips="alex", lpips_alex=str(files / "alex.pth"), classifier=str(files / "small")
    )
    for count, seen in ((2, [[0, 2], [1]]), (4, [[0], [1], [2], []])):
        folder = tmp_path / str(count)
        folder.mkdir()
        run_ranks(count, score_in_process, files, networks, folder)
        results = [read_json(folder / f"{rank}.json") for rank in range(count)]
        assert [sorted({*result["seen"]}) for result in results] == seen
        expected = held_out(files, networks).scores(lambda x: 0.5 * x, CPU)
        for result in results:
            assert_close(result["scores"], expected, rtol=1e-6, atol=0)


def test_what_has_no_weights_is_left_out_and_said_once(files, no_weights, caplog):
    caplog.set_level("INFO")
    found = held_out(files, NetworkConfig()).scores(lambda x: 0.5 * x, CPU)
    expected = {"psnr", "ssim", "ssim_1", "ssim_2", "ssim_3", "ssim_4", "ssim_margin"}
    assert found.keys() == expected
    (line,) = [line for line in caplog.messages if "scored without" in line]
    found = re.findall(r"(LPIPS with \w+|rFVD) \(([^)]*)\)", line)
    assert [name for name, _ in found] == ["LPIPS with alex", "LPIPS with vgg", "rFVD"]
    assert "alexnet-owt-7be5be79.pth" in found[0][1]
    assert found[2][1] == "clips of 5 frames, but I3D needs 9"


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"lpips": "vgg"}, {}, "VGG"),
        ({"lpips_alex": "nowhere.pth"}, {}, "nowhere.pth"),
        ({"lpips": "alex"}, {"width": 16}, "frames of 32 x 16, but LPIPS with alex needs"),
        ({"rfvd": "i3d", "lpips": "none"}, {}, "clips of 5 frames, but I3D needs 9"),
        ({"rfvd": "i3d", "lpips": "none"}, {"frames": 9}, "i3d_pretrained_400.pt"),
        ({"i3d": "nowhere.pt", "lpips": "none"}, {"frames": 9}, "nowhere.pt"),
        ({"classifier": "nowhere", "lpips": "none"}, {}, "nowhere: no such folder"),
        ({"classifier": "small", "lpips": "none"}, {"count": 1}, "1 clip, but a distance"),
    ],
)
def test_what_is_asked_for_by_name_must_be_there(files, no_weights, options, size, message):
    with pytest.raises(ValueError, match=message):
        held_out(files, NetworkConfig(**options), **size)
