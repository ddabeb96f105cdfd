"""Train a small video classifier on packed, labeled videos."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from annotated_types import Ge, MultipleOf
from torch import nn
from tqdm import tqdm

from common.cli import main
from common.config import Config, Width
from common.files import write_json
from common.output_folder import Input, lock_folder
from common.pixels import to_float
from common.seeding import fold
from data.clips.dataset import ClipConfig, ClipDataset
from data.clips.loader import training_batches
from engine.accelerator import training_accelerator
from engine.config import TrainConfig
from engine.optimization import Batch, Losses, StepInfo
from engine.train import Trainer
from eval.features.classifier import GROUPS, ClassifierConfig, ClipClassifier
from eval.protocols.training_scores import fixed_clips


@dataclass(frozen=True, kw_only=True)
class TrainClassifier(Config):
    """Train a classifier whose features and probabilities score clips of your own classes."""

    train: TrainConfig
    """Length, batch, optimizer, run folder."""
    data: ClipConfig
    """Training clips; every video needs a class."""
    test: str | None = None
    """Folder of held-out shards with the same classes; their accuracy is reported."""
    channels: Annotated[Width, Ge(GROUPS), MultipleOf(GROUPS)] = 32
    """Channels of the first stage, a multiple of 8; the features have 4 times as many."""


def run(config: TrainClassifier) -> dict[str, Any]:
    """Train, measure on the held-out clips; writes metrics.json into the run folder."""
    accelerator = training_accelerator(config.train)
    with lock_folder(config.train.folder, accelerator):
        return _train(config, accelerator)


def _train(config: TrainClassifier, accelerator: Accelerator) -> dict[str, Any]:
    train = _labeled(ClipDataset(config.data, config.train.seed))
    test = None
    if config.test is not None:
        test = _labeled(fixed_clips(replace(config.data, folder=config.test)))
        if test.class_names != train.class_names:
            raise ValueError(
                f"{config.test}: its classes are not those of {config.data.folder}. "
                "Pack both alike."
            )
    batches = training_batches(train, config.train, accelerator)
    torch.manual_seed(fold(config.train.seed, "weights"))
    shape = ClassifierConfig(num_classes=len(train.class_names), width=config.channels)
    inputs = {"data": Input(config.data.folder, train.hash)}
    trainer = Trainer(config, config.train, accelerator, ClipClassifier(shape), inputs=inputs)

    def step_loss(model: nn.Module, batch: Batch, info: StepInfo) -> Losses:
        labels = batch["label"]
        with accelerator.autocast():
            logits = model(to_float(batch["video"].to(accelerator.device))).float()
        hits = (logits.argmax(1) == labels).float()
        return Losses({"loss": F.cross_entropy(logits, labels), "accuracy": hits.mean()})

    following = (
        f"python scripts/eval_fvd.py --real {config.data.folder} --fake SAMPLES "
        f"--classifier {config.train.folder}/export"
    )
    export = trainer.run(batches, step_loss, next_command=following)
    metrics = {"class_names": train.class_names, "data_hash": train.hash, "test": None}
    if accelerator.is_main_process:
        if test is not None:
            model = ClipClassifier.from_pretrained(export).to(accelerator.device)
            metrics |= {"test": _accuracy(model, test), "test_hash": test.hash}
        write_json(Path(config.train.folder) / "metrics.json", metrics)
    return metrics


def _labeled(dataset: ClipDataset) -> ClipDataset:
    """The same, if every video has one of at least two classes."""
    folder = dataset.config.folder
    if len(dataset.class_names) < 2:
        raise ValueError(f"{folder}: {len(dataset.class_names)} classes, but at least 2 are needed")
    entries = (dataset.entry(i) for i in range(len(dataset)))
    if unlabeled := [entry.key for entry in entries if entry.label in (None, -1)]:
        raise ValueError(
            f"{folder}: {len(unlabeled)} of {len(dataset)} videos have no class, "
            f"{unlabeled[0]} for one. Pack videos in class folders."
        )
    return dataset


@torch.inference_mode()
def _accuracy(model: ClipClassifier, dataset: ClipDataset) -> dict[str, Any]:
    """Share of clips recognized, beside that of always saying the most frequent class."""
    device = model.head.weight.device
    items = (dataset[(0, i)] for i in tqdm(range(len(dataset)), desc="held out", unit="clip"))
    pairs = []
    for item in items:
        logits = model(to_float(item["video"][None].to(device)))
        pairs.append((int(logits.argmax()), item["label"]))
    labels = torch.tensor([label for _, label in pairs])
    return {
        "accuracy": sum(predicted == label for predicted, label in pairs) / len(pairs),
        "chance": labels.bincount().max().item() / len(pairs),
        "clips": len(pairs),
    }


def _print(metrics: dict[str, Any]) -> None:
    if test := metrics["test"]:
        print(
            f"held-out accuracy {test['accuracy']:.3f} over {test['clips']} clips "
            f"(always the most frequent class: {test['chance']:.3f})"
        )


if __name__ == "__main__":
    main(TrainClassifier, lambda config: _print(run(config)))
