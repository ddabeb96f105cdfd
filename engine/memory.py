"""The memory of a training step: measured, or worked out on tensors without data."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed.tensor import DTensor

from common.measure import GIGABYTE, LiveMemory, peak_memory_bytes
from engine.losses import Batch, LossFunction
from engine.optimization import micro_batches, trainable
from engine.prefetch import to_device
from engine.train import Trainer


def measure_step_memory(trainer: Trainer, batch: Batch, loss_function: LossFunction) -> int:
    """Run a step's forward and backward passes, of all modules, and change nothing.

    Shows before the run what memory a step takes, the discriminator and AdamW's state included.

    Args:
        batch: like the largest of this process's batches; its values do not matter.
    Returns:
        Highest memory so far, bytes: of the accelerator, on a CPU of the whole process.
    Raises:
        ValueError: the memory does not suffice.
    """
    device = trainer.accelerator.device
    try:
        with _unchanged(trainer):
            reserved = [each.allocate_optimizer_state() for each in trainer.trained]
            trainer.add_gradients(to_device(batch, device), loss_function, _whole_step(trainer))
            memory = peak_memory_bytes(device)
            del reserved
    except torch.OutOfMemoryError as error:
        raise ValueError(
            "out of memory in one training step: lower micro_batch_size or the clips' "
            f"size. ({error})"
        ) from None
    return memory


def measured_memory(trainer: Trainer, batch: Batch, loss_function: LossFunction) -> str:
    """The line that says what `measure_step_memory` finds."""
    memory, device = measure_step_memory(trainer, batch, loss_function), trainer.accelerator.device
    whole = " (whole process)" if device.type == "cpu" else ""
    return (
        f"memory, measured: {memory / GIGABYTE:.3g} GB at most in one step with all modules "
        f"trained, on {device}{whole}"
    )


def estimate_memory(
    trainer: Trainer, batch: Batch, loss_function: LossFunction
) -> tuple[int, int] | None:
    """Memory of a step of this process with all modules trained, without running it.

    The forward and backward passes run on tensors that have a shape and no data: in seconds, on any
    machine, whatever the size. What the device's libraries take for themselves is not in it:
    context, workspaces of convolutions, gaps between tensors.

    Args:
        batch: like the largest of this process's batches; its values do not matter.
    Returns: bytes that stay from step to step (weights, gradients, AdamW's moments, the average,
        and with several processes the buffers in which they exchange gradients), and what
        activations add to them at most. None if a loss depends on values that are not there, or
        weights are shared out (FSDP).
    """
    modules = [trainer.accelerator.unwrap_model(each.module) for each in trainer.trained]
    if any(isinstance(p, DTensor) for module in modules for p in module.parameters()):
        return None
    memory = LiveMemory()
    config, step = trainer.config, _whole_step(trainer)
    parts = micro_batches(batch, size=config.micro_batch_size, seed=config.seed, step=step, rank=0)
    part, info = next(parts)
    info = replace(info, last=False)  # what follows the last one is exchanged by all processes
    eager = torch.compiler.set_stance("force_eager")
    # weights may have no data themselves, of a model that is too large for this machine
    fake = detect_fake_mode(list(modules[0].parameters()))
    fake = fake or FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with _unchanged(trainer), eager, fake, memory:
            part = to_device(part, trainer.accelerator.device)
            for each, module in zip(trainer.trained, modules, strict=True):
                values, part = (each.loss or loss_function)(module, part, info)
                values["loss"].backward()
    except DataDependentOutputException:
        return None
    weights = sum(p.nbytes for module in modules for p in module.parameters())
    average = sum(p.nbytes for p in trainer.ema.model.parameters())
    trained = sum(p.nbytes for module in modules for p in trainable(module))
    copies = 3 if trainer.accelerator.num_processes == 1 else 4
    # where gradients are accumulated, all of them are there from the second micro-batch on; else
    # they come as activations go
    whole = info.share == 1
    activations = max(0, memory.peak - trained) if whole else memory.peak
    return weights + copies * trained + average, activations


def _whole_step(trainer: Trainer) -> int:
    """The next step at which all modules are trained; a discriminator may begin late."""
    return max(trainer.step, *(each.start for each in trainer.trained))


@contextmanager
def _unchanged(trainer: Trainer) -> Iterator[None]:
    """Gradients and states that come about within are gone afterwards."""
    kept = {name: stateful.state_dict() for name, stateful in trainer.states.items()}
    try:
        yield
    finally:
        for each in trainer.trained:
            each.discard_gradients()
        for name, stateful in trainer.states.items():
            stateful.load_state_dict(kept[name])
        trainer.watch.restart()
