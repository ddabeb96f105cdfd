"""Work that all processes of a run share."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

Result = TypeVar("Result")


def num_processes() -> int:
    """How many processes share the work: 1 unless Accelerate has met several."""
    return PartialState().num_processes if PartialState._shared_state else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return PartialState().process_index if PartialState._shared_state else 0


def even_share(count: int) -> int:
    """How many of `count` items each process gets where all have work, rounded up."""
    return -(-count // num_processes())


def share_batches(count: int, batch_size: int, work: Callable[[range], Result]) -> list[Result]:
    """`work` on every batch of the numbers below `count`, dealt out to all processes in turn.

    All processes have to call it, and all get all results, in order. The batches are those that a
    single process would form, so that each number is worked on in the same company.

    Args:
        batch_size: numbers of a batch; the last may have fewer.
        work: done once for each batch, in one of the processes; its result can be pickled and has
            no tensors on an accelerator.

    Raises:
        ValueError: what `work` refused, in all processes.
    """
    world = num_processes()
    firsts = range(0, count, batch_size)
    batches = [range(first, min(first + batch_size, count)) for first in firsts]
    if world == 1:
        return [work(batch) for batch in batches]
    refusal: str | None = None
    done: dict[int, Result] = {}
    try:
        for number in range(process_index(), len(batches), world):
            done[number] = work(batches[number])
    except ValueError as error:
        refusal = str(error)  # subclasses may not survive the way to the others
    for part, refused in gather_object([(done, refusal)]):
        if refused is not None:
            raise ValueError(refused)
        done |= part
    return [done[number] for number in range(len(batches))]
