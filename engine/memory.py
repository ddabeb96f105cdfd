"""The memory of a training step, worked out on tensors without data: nothing is computed."""

from dataclasses import replace

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed.tensor import DTensor

from common.measure import LiveMemory
from engine.losses import Batch, LossFunction
from engine.optimization import micro_batches, trainable
from engine.prefetch import to_device
from engine.train import Trainer


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
    kept = {name: stateful.state_dict() for name, stateful in trainer.states.items()}
    modules = [trainer.accelerator.unwrap_model(each.module) for each in trainer.trained]
    if any(isinstance(p, DTensor) for module in modules for p in module.parameters()):
        return None
    memory = LiveMemory()
    config, step = trainer.config, max(trainer.step, trainer.all_trained_from)
    parts = micro_batches(batch, size=config.micro_batch_size, seed=config.seed, step=step, rank=0)
    part, info = next(parts)
    info = replace(info, last=False)  # what follows the last one is exchanged by all processes
    eager = torch.compiler.set_stance("force_eager")
    # weights may have no data themselves, of a model that is too large for this machine
    fake = detect_fake_mode(list(modules[0].parameters()))
    fake = fake or FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with eager, fake, memory:
            part = to_device(part, trainer.accelerator.device)
            values, outputs = loss_function(modules[0], part, info)
            values["loss"].backward()
            if trainer.discriminator is not None:
                values, _ = trainer.discriminator.loss(modules[1], outputs, info)
                values["loss"].backward()
            del values, outputs
    except DataDependentOutputException:
        return None
    finally:
        for each in trainer.trained:
            each.discard_gradients()
        for name, stateful in trainer.states.items():
            stateful.load_state_dict(kept[name])
    weights = sum(p.nbytes for module in modules for p in module.parameters())
    average = sum(p.nbytes for p in trainer.ema.model.parameters())
    trained = sum(p.nbytes for module in modules for p in trainable(module))
    copies = 3 if trainer.accelerator.num_processes == 1 else 4
    # where gradients are accumulated, all of them are there from the second micro-batch on; else
    # they come as activations go
    whole = info.share == 1
    activations = max(0, memory.peak - trained) if whole else memory.peak
    return weights + copies * trained + average, activations
