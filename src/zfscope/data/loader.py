"""Loaders that leave out images that cannot be read, and whose processes outlive a signal that is meant for the run.

An image that cannot be read is left out of its batch, which is smaller then, and told to the quarantine of its set (see
``zfscope.data.quarantine``). Where a set keeps none, the error is raised.
"""

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

from zfscope.data.imageset import ImageSet
from zfscope.data.readers import SECONDS_WITHOUT_READING, LoaderEnded, WatchedBatches, begin_reading, start_readers
from zfscope.data.reading import UnreadableImage
from zfscope.stops import held

SECONDS_TO_END = 5.0  # what a thread has for the batch that it makes


class Fetched(NamedTuple):
    """A batch as it was read."""

    batch: Any  # None where no image of it can be read
    unread: list[tuple[int, str, str]]  # of those that cannot: index, message, cause


class ImageItems(Dataset):
    """What is made of the images of a set, an item each; base class of the data sets that a `Loader` reads.

    A key is the index of an image, or ``(epoch, index)``. An item alone is read or refused with `UnreadableImage`.
    """

    images: ImageSet

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[Any]) -> list[Any]:
        """The items of a batch; in place of an image that cannot be read the error, which has its ``index``."""
        items = []
        for key in keys:
            try:
                items.append(self[key])
            except UnreadableImage as error:
                error.index = key[1] if isinstance(key, tuple) else key
                items.append(error)
        return items

    def fetch(self, keys: Sequence[Any]) -> Fetched:
        """The items of a batch, stacked; those of images that cannot be read are left out."""
        return _stacked(self.__getitems__(keys))

    def nothing(self) -> Any:
        """A batch without any image."""
        raise NotImplementedError


class Loader(DataLoader):
    """torch's ``DataLoader``; a scheduler's SIGTERM to all processes does not end those of the loader at once.

    A stop waits while the queues of these processes are used: raised within, it would leave them locked for ever.
    A batch of which no image can be read is passed over; with ``keeps_empty`` it comes without images, so that all
    others keep their number. With ``threads`` and no processes batches are made ahead by threads of this process, which
    share its memory: for images that need no decoding. Iterating raises `LoaderEnded` where a process was killed, or
    where none began another image for 50 s.
    """

    def __init__(
        self, dataset: Any, *arguments: Any, keeps_empty: bool = False, threads: int = 0, **options: Any
    ) -> None:
        source = dataset.dataset if isinstance(dataset, Subset) else dataset
        self.items = source if isinstance(source, ImageItems) else None
        self.keeps_empty, self.threads = keeps_empty, threads
        own = {"worker_init_fn": begin_reading}  # given here: Lightning puts a function of its own where there is none
        if self.items is not None:
            own["collate_fn"] = _stacked
        super().__init__(dataset, *arguments, **{**own, **options})

    def __iter__(self) -> Any:
        if self._iterator is not None and self._iterator._shutdown:  # persistent processes that an error has ended
            self._iterator = None
        with held():
            return super().__iter__()

    def _get_iterator(self) -> Any:
        if not self.num_workers:
            return _BatchesAhead(self) if self.threads and self.items is self.dataset else _BatchesHere(self)
        if self.items is not None:
            self.items.images.ready()
        return start_readers(self, _Batches)


def _stacked(items: list[Any]) -> Fetched:
    read = [item for item in items if not isinstance(item, UnreadableImage)]
    unread = [(error.index, str(error), error.cause) for error in items if isinstance(error, UnreadableImage)]
    return Fetched(default_collate(read) if read else None, unread)


class _LeavingOut:
    """An iterator of torch's that gives batches of the images that could be read."""

    def __init__(self, loader: Loader) -> None:
        self._items, self._keeps_empty = loader.items, loader.keeps_empty
        super().__init__(loader)

    def _fetch(self) -> Any:
        return super()._next_data()

    def _next_data(self) -> Any:
        while True:
            data = self._fetch()
            if not isinstance(data, Fetched):
                return data
            for index, message, cause in data.unread:
                self._items.images.leave_out(index, UnreadableImage(message, cause))
            if data.batch is not None:
                return data.batch
            if self._keeps_empty:
                return self._items.nothing()


class _BatchesHere(_LeavingOut, _SingleProcessDataLoaderIter):
    def __init__(self, loader: Loader) -> None:
        super().__init__(loader)
        if self._items is loader.dataset and loader.batch_sampler is not None:
            self._dataset_fetcher = self._items


class _Ahead:
    """What makes batches in threads, in the order in which they are asked for."""

    def __init__(self, items: ImageItems, batches: Iterator[Sequence[Any]], threads: int, pinned: bool) -> None:
        self._wanted: SimpleQueue[SimpleQueue | None] = SimpleQueue()  # the places of batches; None ends a thread
        self._places: deque[SimpleQueue] = deque()
        given = items, batches, pinned, Lock(), self._wanted
        own = [Thread(target=_make_batches, name="batches", args=given, daemon=True) for _ in range(threads)]
        self.close = weakref.finalize(self, _end_threads, self._wanted, own)  # at the latest when the program ends
        for thread in own:
            thread.start()
        for _ in range(2 * threads + 1):
            self._want()

    def fetch(self) -> Fetched:
        """The next batch; ``StopIteration`` where there is none.

        Raises:
            LoaderEnded: If none came for five minutes.
        """
        try:
            made = self._places.popleft().get(timeout=SECONDS_WITHOUT_READING)
        except Empty:
            raise LoaderEnded(
                f"no image came for {SECONDS_WITHOUT_READING:.0f} s; look at the disk of data.cache"
            ) from None
        self._want()
        if isinstance(made, BaseException):
            raise made
        return made

    def _want(self) -> None:
        place: SimpleQueue = SimpleQueue()
        self._places.append(place)
        self._wanted.put(place)


def _make_batches(
    items: ImageItems, batches: Iterator[Sequence[Any]], pinned: bool, in_turn: Lock, wanted: SimpleQueue
) -> None:
    """Make one batch after the other, each for the place that was asked for when its keys came."""
    while True:
        with in_turn:
            if (place := wanted.get()) is None:
                return
            try:
                keys = next(batches)
            except BaseException as error:  # also the end
                place.put(error)
                continue
        try:
            fetched = items.fetch(keys)
            place.put(pin_memory(fetched) if pinned else fetched)
        except BaseException as error:
            place.put(error)


def _end_threads(wanted: SimpleQueue, threads: list[Thread]) -> None:
    """Let each end the batch that it makes: torch must not be at work while the interpreter ends."""
    with suppress(Empty):
        while True:
            wanted.get_nowait()
    for _ in threads:
        wanted.put(None)
    for thread in threads:
        thread.join(SECONDS_TO_END)


class _BatchesAhead(_LeavingOut, _SingleProcessDataLoaderIter):
    def __init__(self, loader: Loader) -> None:
        super().__init__(loader)
        self._ahead = _Ahead(loader.items, self._sampler_iter, loader.threads, self._pin_memory)

    def __next__(self) -> Any:
        return self._next_data()  # torch's own takes a quarter of a millisecond to tell its profiler

    def _fetch(self) -> Fetched:
        with held():
            return self._ahead.fetch()


class _Batches(_LeavingOut, WatchedBatches):
    pass
