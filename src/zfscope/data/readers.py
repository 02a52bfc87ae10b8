"""The processes that read images: one that was killed, or that hangs on a dead disk, is told by the image that it read.

Each of them notes in memory that it shares with the run which image it is reading.
"""

import copy
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import queues, util
from typing import Any

from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from zfscope.schema import listed, shown
from zfscope.stops import MachineFault, held, outlive, starting_processes

SECONDS_WITHOUT_IMAGE = 50.0  # of waiting for a batch while no process begins another image
SECONDS_WITHOUT_READING = 300.0  # the same, while none is at an image: they start, or hang between two
POLL = 5.0  # seconds between two looks at the processes
NONE = -1
LONGEST_SOCKET = 103  # bytes of its path, with the least that systems take (macOS; Linux takes 107)
NAME_OF_SOCKET = "/pymp-12345678/listener-12345678"  # as long as those that Python makes in the temporary folder
CAUSE = 600  # bytes


def begin_reading(*_: Any) -> None:
    """``worker_init_fn``: outlive a scheduler's signal, and end where a batch cannot be sent.

    Python prints the error and goes on, so that the run would wait for that batch for ever.
    """
    outlive()
    noted = get_worker_info().dataset

    def cannot_send(error: Exception, _: Any) -> None:
        noted.unsent.value = shown(f"{type(error).__name__}: {error}", 200).encode()[:CAUSE]
        os._exit(1)

    queues.Queue._on_queue_feeder_error = staticmethod(cannot_send)


class LoaderEnded(MachineFault):
    """A process that reads images was killed, or hangs; the message names the image."""


def start_readers(loader: DataLoader, batches: "Callable[[DataLoader], WatchedBatches]") -> "WatchedBatches":
    """The iterator that ``batches`` makes of a loader, its processes started and watched."""
    noted = copy.copy(loader)
    noted.__dict__["dataset"] = _Noted(loader.dataset, loader.num_workers)
    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    earlier = signal.getsignal(signal.SIGCHLD) if main else None
    with starting_processes():
        _shorten_sockets()
        try:
            return batches(noted)
        finally:
            # torch's own raises wherever the run is when a process ends: within a step, within a file.
            if earlier is not None:
                signal.signal(signal.SIGCHLD, earlier)


def _shorten_sockets() -> None:
    """Have the sockets by which processes pass images in /tmp where the path of TMPDIR is too long for them.

    Python does so itself from 3.14 on; before, no batch arrives.
    """
    if os.name == "nt" or len(os.fsencode(tempfile.gettempdir() + NAME_OF_SOCKET)) <= LONGEST_SOCKET:
        return
    usual, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        with suppress(OSError):  # then the first batch tells it
            util.get_temp_dir()  # is kept for all processes that this one starts
    finally:
        tempfile.tempdir = usual


class _Noted(Dataset):
    """A data set whose reader notes, by process, how many images it began and which one it is reading.

    ``unsent`` is why a process could not send a batch.
    """

    def __init__(self, images: Any, processes: int) -> None:
        self.images = images
        self.begun = multiprocessing.get_context().RawArray("q", processes)
        self.reading = multiprocessing.get_context().RawArray("q", [NONE] * processes)
        self.unsent = multiprocessing.get_context().RawArray("c", CAUSE)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[Any]) -> list[Any]:
        """The items of a batch, noted one by one."""
        return [self._read(key) for key in keys]

    def _read(self, key: Any) -> Any:
        number = get_worker_info().id
        self.begun[number] += 1
        self.reading[number] = key[-1] if isinstance(key, tuple) else key
        try:
            return self.images.__getitems__([key])[0] if hasattr(self.images, "__getitems__") else self.images[key]
        finally:
            self.reading[number] = NONE

    def names(self, processes: Iterable[int]) -> str:
        """What these processes are reading."""
        return listed(sorted({_name(self.images, self.reading[n]) for n in processes if self.reading[n] != NONE}))


class WatchedBatches(_MultiProcessingDataLoaderIter):
    """torch's iterator over the batches of processes; raises `LoaderEnded` where these can give no more."""

    _begun: Sequence[int] = ()
    _waited = 0.0

    def __del__(self) -> None:
        workers = getattr(self, "_workers", ())
        if any(process._parent_pid != os.getpid() for process in workers):
            return  # a copy in a process that was forked: the original goes on
        if workers and not (self._shutdown or self._pin_memory):
            # A garbage collection ends the queues first: torch would wait 5 s for each process, which hears nothing.
            for process in workers:
                process.terminate()
        super().__del__()

    def _reset(self, *arguments: Any, **more: Any) -> None:
        with self._watched():
            super()._reset(*arguments, **more)

    def _next_data(self) -> Any:
        with held(), self._watched():
            return super()._next_data()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        self._waited = 0.0
        try:
            yield
        except (StopIteration, LoaderEnded):
            raise
        except Exception:  # also what half of a batch does to the thread that pins memory
            ended = [number for number, process in enumerate(self._workers) if not process.is_alive()]
            if self._shutdown:
                raise
            if not ended:
                self._shutdown_workers()  # a garbage collection, later, would wait 5 s for each process
                raise
            raise self._ended(self._of_killed(ended)) from None

    def _try_get_data(self, timeout: float = POLL) -> tuple[bool, Any]:
        timeout = min(timeout, POLL)
        success, data = super()._try_get_data(timeout)
        begun = list(self._dataset.begun)
        # Looks are counted, not the clock: a run that was suspended has not waited.
        self._waited = 0.0 if success or begun != self._begun else self._waited + timeout
        self._begun = begun
        if self._waited >= SECONDS_WITHOUT_IMAGE:
            hanging = [number for number, image in enumerate(self._dataset.reading) if image != NONE]
            if hanging:
                raise self._ended(
                    f"no image came for {self._waited:.0f} s, the processes that read them hang at "
                    f"{self._dataset.names(hanging)}; look at that file and its disk"
                )
        if self._waited >= SECONDS_WITHOUT_READING:
            raise self._ended(
                f"no image came for {self._waited:.0f} s, and no process that reads them is at one; data.num_workers=0 "
                "reads images without such processes"
            )
        return success, data

    def _ended(self, message: str) -> LoaderEnded:
        # torch would wait 5 s for each process; the dead may hold the locks of the others.
        self._shutdown = True
        for process in self._workers:
            process.kill()
        for process in self._workers:
            process.join(timeout=1)
        if self._pin_memory:
            self._pin_memory_thread_done_event.set()
        if self._worker_pids_set:
            signal_handling._remove_worker_pids(id(self))
            self._worker_pids_set = False
        return LoaderEnded(message)

    def _of_killed(self, ended: list[int]) -> str:
        if cause := self._dataset.unsent.value.decode(errors="ignore"):
            return (
                f"a process that reads images could not send a batch ({cause}); data.num_workers=0 reads images "
                "without such processes"
            )
        codes = [self._workers[number].exitcode for number in ended]
        causes = sorted({signal.Signals(-code).name if code and code < 0 else f"exit code {code}" for code in codes})
        names = self._dataset.names(ended)
        return (
            f"a process that reads images was ended ({listed(causes)}) "
            f"{f'while it read {names}' if names else 'between two images'}; if the memory was used up, use fewer such "
            "processes or none: data.num_workers=0"
        )


def _name(images: Any, index: int) -> str:
    """What the image at a position of a data set is called; its number where the data set has no names."""
    while isinstance(images, Subset):
        images, index = images.dataset, int(images.indices[index])
    images = getattr(images, "images", images)
    return images.name(index) if hasattr(images, "name") else f"image {index}"
