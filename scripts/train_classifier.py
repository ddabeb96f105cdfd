"""Train a small video classifier on packed, labeled videos."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from annotated_types import Ge, MultipleOf
from torch import nn

from common.cli import main
from common.config import Config, Width
from common.files import write_json
from common.output_folder import Input, lock_folder
from common.pixels import to_float
from common.seeding import fold
from data.clips.batches import training_batches
from data.clips.dataset import ClipConfig, ClipDataset
from engine.accelerator import training_accelerator
from engine.config import TrainConfig
from engine.losses import Batch, Losses, StepInfo
from engine.train import Trainer
from eval.features.classifier import GROUPS, ClassifierConfig, ClipClassifier, accuracy
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
    train, test = ClipDataset(config.data, config.train.seed), None
    train.check_labeled()
    if config.test is not None:
        test = fixed_clips(replace(config.data, folder=config.test))
        test.check_labeled()
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
            metrics |= {"test": accuracy(model, test), "test_hash": test.hash}
        write_json(Path(config.train.folder) / "metrics.json", metrics)
    return metrics


def _print(metrics: dict[str, Any]) -> None:
    if test := metrics["test"]:
        print(
            f"held-out accuracy {test['accuracy']:.3f} over {test['clips']} clips "
            f"(always the most frequent class: {test['chance']:.3f})"
        )


if __name__ == "__main__":
    main(TrainClassifier, lambda config: _print(run(config)))
