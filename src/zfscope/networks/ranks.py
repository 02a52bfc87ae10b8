"""Processes that share the pass of an analysis over its images, as torchrun starts them.

Each reads and computes every so many-th batch; the first one gets all results, in the order of the batches, and writes
what one process would write. The others end with the pass.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed


class PassEnded(BaseException):
    """In another rank than the first: its part of the work is done."""


class _State:
    active = False  # a training has ranks too, and its first one evaluates by itself


def started_by_torchrun() -> int:
    """How many processes torchrun started for this command; 1 where it did not start it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


@contextmanager
def sharing_passes() -> Iterator[None]:
    """Within this block passes are shared, where torchrun started several processes."""
    if started_by_torchrun() == 1:
        yield
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    _State.active = True
    try:
        yield
    except PassEnded:
        pass
    finally:
        _State.active = False
        distributed.destroy_process_group()


def share() -> tuple[int, int]:
    """The number of this process in a shared pass, and how many there are: ``(0, 1)`` where none is shared."""
    return (distributed.get_rank(), distributed.get_world_size()) if _State.active else (0, 1)


def own_batches(count: int, batch_size: int) -> dict[str, Any]:
    """What tells a loader of ``count`` images in order, batch by batch, which of them are this process's."""
    rank, ranks = share()
    if ranks == 1:
        return {"batch_size": batch_size}
    firsts = range(rank * batch_size, count, ranks * batch_size)
    return {"batch_sampler": [range(first, min(first + batch_size, count)) for first in firsts]}


def shared(batches: Iterable[Any], compute: Callable[[Any], Any], loader: Any = None) -> Iterator[Any]:
    """What ``compute`` makes of each batch, in the first process of all batches, in their order.

    ``loader`` is what the batches come from: the first process learns which of its images others could not read.

    Raises:
        PassEnded: At the end, in the other processes.
    """
    rank, ranks = share()
    if ranks == 1:
        yield from map(compute, batches)
        return
    own = map(compute, batches)
    while True:
        found: list[Any] = [None] * ranks
        made = next(own, None)
        distributed.gather_object(made, found if rank == 0 else None)
        going = torch.tensor(made is not None)
        distributed.all_reduce(going, distributed.ReduceOp.MAX)
        yield from (each for each in found if each is not None)
        if not going:
            break
    end_pass(loader)


def end_pass(loader: Any = None) -> None:
    """Where a shared pass over a loader is over: the others end, and the first one knows what they could not read."""
    rank, ranks = share()
    if ranks == 1:
        return
    left_out = getattr(getattr(getattr(loader, "items", None), "images", None), "quarantine", None)
    causes: list[Any] = [None] * ranks
    distributed.gather_object(dict(left_out.causes) if left_out is not None else {}, causes if rank == 0 else None)
    if rank:
        raise PassEnded
    for row, cause in {row: cause for each in causes for row, cause in each.items()}.items():
        left_out.add(row, cause)
