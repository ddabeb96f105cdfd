"""Long tensors along t: cut into runs of whole frame groups, run step by step, put together.

A step takes a chunk `b c t h w`, what the step before left (None for the first), and whether it is
known to be the last; it gives the result and what it leaves in turn.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Step = Callable[[Tensor, Any, bool], tuple[Tensor, Any]]


def run(step: Step, chunks: Iterable[Tensor], count: int | None = None) -> Iterator[Tensor]:
    """The result of every chunk in turn; only what one step leaves for the next is kept.

    `count` of the chunks, where it is known, tells the last step that nothing follows.
    """
    past = None
    for i, chunk in enumerate(chunks, start=1):
        result, past = step(chunk, past, i == count)
        yield result


def run_whole(
    step: Step, x: Tensor, chunk_groups: int, frames_per_group: int, frames: int
) -> Tensor:
    """The `frames` that `step` makes of all of `x` (b c t h w), in runs of `chunk_groups`.

    Where the device's memory runs out without gradients, again in runs of half as many.

    Raises:
        torch.OutOfMemoryError: a single group does not fit, or gradients are wanted.
    """
    chunk_groups = max(1, min(chunk_groups, (x.shape[2] - 1) // frames_per_group))
    while True:
        chunks = split(x, chunk_groups, frames_per_group)
        try:
            return join(run(step, chunks, len(chunks)), frames)
        except torch.OutOfMemoryError:
            if chunk_groups == 1 or torch.is_grad_enabled():
                raise
        # outside of the handler, whose exception keeps the tensors of the failed run
        log.warning(
            "out of memory with chunk_groups=%d: trying again with %d",
            chunk_groups,
            chunk_groups // 2,
        )
        chunk_groups //= 2


def split(x: Tensor, chunk_groups: int, frames_per_group: int) -> list[Tensor]:
    """Views of `b c t h w`: one image frame and `chunk_groups` groups, then `chunk_groups` each.

    `frames_per_group` is the temporal ratio for frames and 1 for latents.
    """
    size = chunk_groups * frames_per_group
    starts = range(1 + size, x.shape[2], size)
    return [x[:, :, : 1 + size], *(x[:, :, start : start + size] for start in starts)]


def join(parts: Iterable[Tensor], frames: int) -> Tensor:
    """One `b c t h w` tensor of `frames` frames from consecutive parts.

    Room for all is made once and each part is copied as it comes, so that parts need not be kept.
    """
    whole, done = torch.empty(0), 0
    for part in parts:
        if part.shape[2] == frames:
            return part
        if done == 0:
            whole = part.new_empty(*part.shape[:2], frames, *part.shape[3:])
        whole[:, :, done : done + part.shape[2]] = part
        done += part.shape[2]
    assert done == frames, f"{done} of {frames} frames"
    return whole
