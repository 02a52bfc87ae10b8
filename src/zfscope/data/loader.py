"""Loaders whose processes outlive a signal that is meant for the run: its step may still need their images."""

from typing import Any

from torch.utils.data import DataLoader, Subset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from zfscope.stops import held, outlive, starting_processes


class Loader(DataLoader):
    """torch's ``DataLoader``; a scheduler's SIGTERM to all processes does not end those of the loader at once.

    A stop waits while the queues of these processes are used: raised within, it would leave them locked for ever.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # Given here: Lightning puts a function of its own where there is none.
        super().__init__(*arguments, **{"worker_init_fn": outlive, **options})

    def __iter__(self) -> Any:
        with held():
            return super().__iter__()

    def _get_iterator(self) -> Any:
        if not self.num_workers:
            return super()._get_iterator()
        dataset = self.dataset.dataset if isinstance(self.dataset, Subset) else self.dataset
        if hasattr(dataset, "images"):
            dataset.images.ready()
        with starting_processes():
            return _Batches(self)


class _Batches(_MultiProcessingDataLoaderIter):
    def _next_data(self) -> Any:
        with held():
            return super()._next_data()
