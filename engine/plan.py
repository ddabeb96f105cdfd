"""What a run is about to do, for people: sizes, length, checkpoints, disk, memory."""

import shutil
from pathlib import Path

from torch import nn

from engine.run import kept
from engine.train import Trainer

GIGABYTE = 1e9


def plan(
    trainer: Trainer, clips_in_data: int | None, clips_per_step: float, memory_mb: float
) -> list[str]:
    """One line per topic.

    Args:
        trainer: of the run; it may have been resumed.
        clips_in_data: clips of one epoch; None where there are no epochs.
        clips_per_step: over all processes, on average.
        memory_mb: what `Trainer.rehearse` measured.
    """
    config, world = trainer.config, trainer.accelerator.num_processes
    steps = range(trainer.step + 1, config.steps + 1)
    clips = round(len(steps) * clips_per_step)
    epochs = (
        f"{clips / clips_in_data:.1f} epochs of {clips_in_data}" if clips_in_data else "a stream"
    )
    at_once = "all at once" if config.micro_batch is None else f"{config.micro_batch} at once"
    device = trainer.accelerator.device
    return [
        *(
            f"{player.name or 'model'}: {_count(player.module) / 1e6:.2f} M parameters"
            + (f", trained from step {player.start} on" if player.start else "")
            for player in trainer.players.all
        ),
        f"steps: {trainer.step} done, {len(steps)} to come",
        f"batch: {clips_per_step:g} clips = {world} processes x {clips_per_step / world:g}, "
        f"{at_once}",
        f"data: {clips} clips to come, {epochs}",
        *_checkpoints(trainer, steps),
        f"memory: {memory_mb / 1000:.2f} GB at most in one step, all players active, "
        f"measured on {device}" + (" (whole process)" if device.type == "cpu" else ""),
    ]


def _checkpoints(trainer: Trainer, steps: range) -> list[str]:
    config = trainer.config
    saved = [s for s in steps if s % config.save_every == 0 or s == config.steps]
    stay, _ = kept(saved, config.keep, config.keep_every)
    sizes = [_count(player.module) for player in trainer.players.all]
    each = 4 * (3 * sum(sizes) + sizes[0]) / GIGABYTE  # weights and AdamW's two moments; the EMA
    most = (len(stay) + 1) * each  # one more while the newest is written
    root = trainer.folder.path.absolute()
    free = shutil.disk_usage(_existing(root)).free / GIGABYTE
    lines = [
        f"checkpoints: {len(saved)} to come, {len(stay)} of them stay, {each:.3g} GB each, "
        f"{most:.3g} GB at most; {free:.3g} GB are free"
    ]
    return lines + (["warning: the disk is too small for the checkpoints"] if most > free else [])


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
