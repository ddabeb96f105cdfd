"""The clip classifier and its training: determinism, folders, refusals."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from common.cli import parse
from common.files import read_json
from data.clips.dataset import ClipConfig
from data.importers import ImportResult
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from data.video.video_record import VideoRecord
from engine.config import TrainConfig
from engine.run_folder import read_log
from eval.features.classifier import ClassifierConfig, ClipClassifier
from scripts import eval_fvd, train_classifier
from scripts.train_classifier import TrainClassifier
from tests.builders.packed import pack
from tests.builders.videos import write_barcode_video


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("classifier") / "shards", [8, 8, 8, 8])


def training(shards, out, test=None, channels=8, **changes) -> TrainClassifier:
    settings = {
        "steps": 3,
        "global_batch_size": 2,
        "log_every": 1,
        "learning_rate": 1e-3,
        **changes,
    }
    return TrainClassifier(
        train=TrainConfig(folder=str(out), **settings),
        data=ClipConfig(folder=str(shards), frames=4, height=16, width=16),
        test=test and str(test),
        channels=channels,
    )


def test_each_clip_is_processed_alone():
    model = ClipClassifier(ClassifierConfig(num_classes=3, width=8)).eval()
    videos = torch.rand(3, 3, 5, 20, 28) * 2 - 1
    alone = torch.cat([model(videos[i : i + 1]) for i in range(3)])
    assert_close(model(videos), alone)
    assert model.features(videos).shape == (3, 32)
    assert model(torch.zeros(1, 3, 1, 8, 8)).shape == (1, 3)


def test_folder_round_trip(tmp_path):
    model = ClipClassifier(ClassifierConfig(num_classes=3, width=8)).eval()
    model.save_pretrained(tmp_path)
    loaded = ClipClassifier.from_pretrained(tmp_path)
    video = torch.rand(1, 3, 4, 16, 16)
    assert_close(loaded(video), model(video), rtol=0, atol=0)
    assert loaded.config == model.config


def test_learns_to_tell_classes_apart(tmp_path, caplog):
    caplog.set_level("INFO")
    folders = {}
    for name, offset in (("train", 0), ("test", 10)):
        records = []
        for i, shade in enumerate((0, 20, 40, 200, 220, 240)):
            path = tmp_path / f"{name}{i}.mp4"
            write_barcode_video(path, frames=6, height=32, width=32, shade=shade + offset)
            records.append(VideoRecord(f"{name}{i}", path, label=i // 3))
        folders[name] = tmp_path / name
        config = ShardConfig(short_side=32, min_frames=4)
        write_shards(ImportResult(records, ["dark", "light"]), folders[name], config)
    metrics = train_classifier.run(
        training(
            folders["train"],
            tmp_path / "out",
            test=folders["test"],
            steps=40,
            global_batch_size=6,
            learning_rate=3e-3,
            ema_decay=0.5,
        )
    )
    assert metrics["test"] == {"accuracy": 1.0, "chance": 0.5, "clips": 6}
    assert metrics["class_names"] == ["dark", "light"]
    assert read_log(tmp_path / "out")[-1]["accuracy"] == 1.0
    assert read_json(tmp_path / "out" / "metrics.json")["test"]["clips"] == 6
    last = [record.message for record in caplog.records if record.name == "engine.train"][-1]
    following = parse(
        eval_fvd.EvalFVD, last.removeprefix("next: python scripts/eval_fvd.py ").split()
    )
    assert (following.real, following.classifier) == (
        str(folders["train"]),
        f"{tmp_path}/out/export",
    )


def test_equal_seeds_give_equal_weights_and_others_do_not(shards, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)  # the global state must not matter
        train_classifier.run(training(shards, tmp_path / name, seed=seed))
    a, b, c = (load_file(tmp_path / name / "export" / "model.safetensors") for name in "abc")
    assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_unfit_data_is_refused(shards, tmp_path):
    unlabeled = pack(tmp_path / "unlabeled", [8, 8], class_names=())
    with pytest.raises(ValueError, match="0 classes"):
        train_classifier.run(training(unlabeled, tmp_path / "out"))
    others = pack(tmp_path / "others", [8, 8], class_names=("c", "d"))
    with pytest.raises(ValueError, match="its classes are not those of"):
        train_classifier.run(training(shards, tmp_path / "out", test=others))
    with pytest.raises(ValueError, match="channels=12 must be a multiple of 8"):
        training(shards, tmp_path / "out", channels=12)
    assert not (tmp_path / "out").exists()
