"""Processes that share the passes of an analysis over its images, as torchrun starts them.

All run the analysis up to the end of its last pass. In a pass each reads and computes every so many-th batch; the first
one gets all results, in the order of the batches, and writes what one process would write. What depends on the first
one's disk it decides for all (``by_first``), so that all make the same passes. Where one fails all end, and the first
one says why.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from zfscope.stops import MachineFault

MEANWHILE = timedelta(hours=12)  # how long ranks wait for the first one, which draws, evaluates and writes alone
MENDABLE = (ValueError, TypeError, OSError, ImportError)  # told in one line; others are faults of the program
Answer = TypeVar("Answer")


class PassesEnded(BaseException):
    """In another rank than the first: it has no part in what follows."""


class _Failed(NamedTuple):
    """An error of another rank than the first, as it is told to all."""

    rank: int
    text: str
    mendable: bool


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
    distributed.init_process_group("gloo", timeout=MEANWHILE)
    with ending_together():
        yield


@contextmanager
def ending_together() -> Iterator[None]:
    """Share passes within this block; an error of any process ends all of them, and the first one raises it.

    Of the first one's own errors the others are not told: it leaves their group, and they lose their connection to it.
    """
    _State.active = True
    try:
        yield
    except PassesEnded:
        pass
    except Exception as error:
        if is_first():
            raise
        with suppress(PassesEnded):
            text = str(error) if isinstance(error, MENDABLE) else f"{type(error).__name__}: {error}"
            tell_all(_Failed(distributed.get_rank(), text, isinstance(error, MENDABLE)))
        if not isinstance(error, MENDABLE):
            raise
    finally:
        _State.active = False
        distributed.destroy_process_group()


def share() -> tuple[int, int]:
    """The number of this process in a shared pass, and how many there are: ``(0, 1)`` where none is shared."""
    return (distributed.get_rank(), distributed.get_world_size()) if _State.active else (0, 1)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return share()[0] == 0


def own_batches(count: int, batch_size: int) -> dict[str, Any]:
    """What tells a loader of ``count`` images in order, batch by batch, which of them are this process's."""
    rank, ranks = share()
    if ranks == 1:
        return {"batch_size": batch_size}
    firsts = range(rank * batch_size, count, ranks * batch_size)
    return {"batch_sampler": [range(first, min(first + batch_size, count)) for first in firsts]}


def shared(batches: Iterable[Any], compute: Callable[[Any], Any], loader: Any = None) -> Iterator[Any]:
    """What ``compute`` makes of each batch, in the first process of all batches, in their order; nothing in the others.

    ``loader`` is what the batches come from: at the end all know which of its images any of them could not read.
    """
    rank, ranks = share()
    if ranks == 1:
        yield from map(compute, batches)
        return
    own, sizes = map(compute, batches), [[0]]
    while any(sizes):
        made = next(own, None)
        parcel = [] if made is None else _packed(made)
        sizes = tell_all([len(part) for part in parcel])
        if rank:
            _send(parcel)
            continue
        for source, its_sizes in enumerate(sizes):
            if its_sizes:
                yield _received(its_sizes, source) if source else made
    learn_unread(loader)


def learn_unread(loader: Any) -> None:
    """After a shared pass over a loader: what any process could not read is left out by all."""
    if share()[1] == 1:
        return
    left_out = getattr(getattr(getattr(loader, "items", None), "images", None), "quarantine", None)
    for causes in tell_all(dict(left_out.causes) if left_out is not None else {}):
        for row, cause in causes.items():
            left_out.add(row, cause)


def tell_all(own: Any) -> list[Any]:
    """What each process tells all, by rank; all of them must come here. It goes by pickle: something small.

    Where one has failed all end.

    Raises:
        ValueError: In the first one, the error of another that ends all.
        MachineFault: In the first one, if another failed otherwise, was killed or cannot be reached.
        PassesEnded: In the others, if any process has ended.
    """
    rank, ranks = share()
    if ranks == 1:
        return [own]
    told: list[Any] = [None] * ranks
    with _reaching():
        distributed.all_gather_object(told, own)
    for failed in told:
        if isinstance(failed, _Failed):
            if rank:
                raise PassesEnded
            raise ValueError(failed.text) if failed.mendable else MachineFault(f"rank {failed.rank}: {failed.text}")
    return told


def by_first(compute: Callable[[], Answer]) -> Answer:
    """What ``compute`` gives in the first process, in all of them: that one alone reads and writes its files."""
    return tell_all(compute() if is_first() else None)[0]


def end_passes() -> None:
    """After the last shared pass: the first process goes on alone, as if there were no others.

    Raises:
        PassesEnded: In the other processes.
    """
    if share()[1] == 1:
        return
    tell_all(None)
    if not is_first():
        raise PassesEnded
    _State.active = False


@contextmanager
def _reaching() -> Iterator[None]:
    """Around what needs another process: where that one is gone this one ends, and the first one says so."""
    try:
        yield
    except RuntimeError as error:
        if not is_first():
            raise PassesEnded from error
        raise MachineFault("another process that torchrun started has ended, or cannot be reached") from error


def _packed(item: Any) -> list[Tensor]:
    """An object as bytes, ``(n,)`` uint8: its pickle, and the memory of each numpy array in it, which is not copied."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
    parts = [np.frombuffer(bytearray(pickled), np.uint8), *(np.frombuffer(each.raw(), np.uint8) for each in buffers)]
    return [torch.from_numpy(part) for part in parts]


def _send(parcel: Iterable[Tensor]) -> None:
    with _reaching():
        for part in parcel:
            distributed.send(part, 0)


def _received(sizes: Iterable[int], source: int) -> Any:
    parts = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    with _reaching():
        for part in parts:
            distributed.recv(part, source)
    pickled, *buffers = (part.numpy() for part in parts)
    return pickle.loads(pickled, buffers=buffers)
