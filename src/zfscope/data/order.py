"""The order of training images: a function of seed, epoch and index."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


def check_batch_size(batch_size: int, images: int, world_size: int = 1) -> None:
    """Refuse a batch, over all ranks, that is larger than the training set."""
    if batch_size * world_size > images:
        raise ValueError(
            f"data.batch_size={batch_size} on {world_size} device(s) is larger than the {images} training images; "
            "use a smaller data.batch_size"
        )


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Shuffled batches of ``(epoch, index)``, from where the run stands.

    ``position`` tells how many batches the run has behind it; it is called at the start of every epoch. Each rank takes
    its own part of every batch, ``batch_size`` images. With ``only`` above 0 the first few batches are repeated, to
    overfit them.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, position: Callable[[], int], rank: int = 0, world_size: int = 1
    ) -> None:
        check_batch_size(batch_size, size, world_size)
        self.size, self.batch_size, self.seed, self.position = size, batch_size, seed, position
        self.rank, self.world_size, self.only = rank, world_size, 0

    def __len__(self) -> int:
        """Batches in an epoch; images that do not fill the last one have their turn in another epoch."""
        return self.size // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start = self.position()
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for number in range(start, start + len(self)):
            if self.only:
                number %= self.only
            if number // len(self) != epoch:
                epoch = number // len(self)
                order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            first = ((number % len(self)) * self.world_size + self.rank) * self.batch_size
            yield [(epoch, int(index)) for index in order[first : first + self.batch_size]]
