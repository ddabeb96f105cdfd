"""What a run is about to do, for people: sizes, length, checkpoints, disk, memory."""

import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from common.measure import GIGABYTE, free_memory
from engine.losses import Batch, LossFunction
from engine.memory import estimate_memory, measured_memory
from engine.optimization import trainable
from engine.run_folder import kept
from engine.train import Trainer


def dry_run(
    trainer: Trainer,
    batch: Batch,
    loss_function: LossFunction,
    *,
    clips_in_data: int | None,
    clips_per_step: float,
    sources: Mapping[str, tuple[int, float]] = MappingProxyType({}),
) -> None:
    """Print the plan of a run, one line per topic; all processes have to ask for it.

    On a CPU no step is measured that needs more memory than is free.

    Args:
        trainer: of the run; it may have been resumed.
        batch: like the largest of this process's batches; of its rows, whose values do not matter,
            two micro-batches are taken.
        clips_in_data: clips of one epoch; None where there are no epochs.
        clips_per_step: over all processes, on average.
        sources: where the clips come from, by name: clips that there are, and clips per step.
    """
    config, world = trainer.config, trainer.accelerator.num_processes
    if (micro := config.micro_batch_size) is not None:
        batch = {name: rows[: 2 * micro] for name, rows in batch.items()}
    say = partial(trainer.accelerator.print, flush=True)
    steps = range(trainer.step + 1, config.steps + 1)
    clips = round(len(steps) * clips_per_step)
    epochs = (
        f"{clips / clips_in_data:.1f} epochs of {clips_in_data}" if clips_in_data else "a stream"
    )
    at_once = "all at once" if micro is None else f"{micro} at once"
    for each in trainer.trained:
        since = f", trained from step {each.start} on" if each.start else ""
        count = f"{_count(each.module.parameters()) / 1e6:.2f} M parameters"
        if (trained := _count(trainable(each.module))) < _count(each.module.parameters()):
            count += f", {trained / 1e6:.2f} M of them trained"
        say(f"{each.name or 'model'}: {count}{since}")
    say(f"steps: {trainer.step} done, {len(steps)} to come")
    say(
        f"batch: {clips_per_step:g} clips = {world} processes x {clips_per_step / world:g}, "
        f"{at_once}"
    )
    say(f"data: {trainer.clips} clips seen, {clips} to come, {epochs}")
    for name, (count, per_step) in sources.items():
        given = round(len(steps) * per_step)
        say(
            f"source {name}: {per_step / clips_per_step:.1%} of the clips, {given} to come, "
            f"{given / count:.1f} epochs of {count}"
        )
    for line in _checkpoints(trainer, steps):
        say(line)
    needed, free = 0, free_memory(trainer.accelerator.device)
    if estimate := estimate_memory(trainer, batch, loss_function):
        state, activations = estimate
        needed = state + activations
        say(
            f"memory, estimated: {needed / GIGABYTE:.3g} GB in one step of a process with all "
            f"modules trained: {state / GIGABYTE:.3g} GB for weights, gradients, AdamW and the "
            f"average, {activations / GIGABYTE:.3g} GB for activations; {free / GIGABYTE:.3g} GB "
            "are free here"
        )
    if trainer.accelerator.device.type == "cpu" and needed > free:
        say("memory, measured: skipped, a step would not fit")
    else:
        say(measured_memory(trainer, batch, loss_function))


def _checkpoints(trainer: Trainer, steps: range) -> list[str]:
    config = trainer.config
    saved = [s for s in steps if s % config.save_every == 0 or s == config.steps]
    stay, _ = kept(saved, config.keep, config.keep_every)
    sizes = [_count(each.module.parameters()) for each in trainer.trained]
    moments = 2 * sum(_count(trainable(each.module)) for each in trainer.trained)
    each = 4 * (sum(sizes) + moments + sizes[0]) / GIGABYTE  # the last is the average's
    most = (len(stay) + 1) * each  # one more while the newest is written
    root = trainer.folder.path.absolute()
    existing = next(place for place in (root, *root.parents) if place.exists())
    free = shutil.disk_usage(existing).free / GIGABYTE
    lines = [
        f"checkpoints: {len(saved)} to come, {len(stay)} of them stay, {each:.3g} GB each, "
        f"{most:.3g} GB at most; {free:.3g} GB are free"
    ]
    return lines + (["warning: the disk is too small for the checkpoints"] if most > free else [])


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
