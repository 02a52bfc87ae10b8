"""The order of training images: a function of seed, epoch and index."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


def check_batch_size(batch_size: int, images: int) -> None:
    """Refuse a batch that is larger than the training set."""
    if batch_size > images:
        raise ValueError(
            f"data.batch_size={batch_size} is larger than the {images} training images; use a smaller data.batch_size"
        )


def share_of(batch_size: int, world_size: int, accumulated: int) -> int:
    """Images that a rank reads at a time, where a step's batch is spread over ranks and accumulated batches.

    Raises:
        ValueError: If the batch cannot be spread evenly; with the nearest size that can.
    """
    parts = world_size * accumulated
    if batch_size % parts:
        over = [f"{world_size} devices"] * (world_size > 1)
        over += [f"trainer.accumulate_grad_batches={accumulated}"] * (accumulated > 1)
        nearest = max(1, (2 * batch_size + parts) // (2 * parts)) * parts
        raise ValueError(
            f"data.batch_size={batch_size} is the whole batch of a step and cannot be divided by {parts}, for "
            f"{' and '.join(over)}; use data.batch_size={nearest}"
        )
    return batch_size // parts


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Shuffled batches of ``(epoch, index)``, from where the run stands.

    A step's ``batch_size`` images are spread over ``accumulated`` batches, and each of these over the ranks: the same
    images make a step on any number of ranks. ``position`` tells how many of these smaller batches the run has behind
    it; it is called at the start of every epoch. With ``only`` above 0 the first few are repeated, to overfit them.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        position: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
        accumulated: int = 1,
    ) -> None:
        check_batch_size(batch_size, size)
        self.share = share_of(batch_size, world_size, accumulated)
        self.size, self.batch_size, self.seed, self.position = size, batch_size, seed, position
        self.rank, self.world_size, self.accumulated, self.only = rank, world_size, accumulated, 0

    def __len__(self) -> int:
        """Batches in an epoch; images that do not fill the last one have their turn in another epoch."""
        return self.size // self.batch_size * self.accumulated

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start = self.position()
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for number in range(start, start + len(self)):
            if self.only:
                number %= self.only
            if number // len(self) != epoch:
                epoch = number // len(self)
                order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            first = ((number % len(self)) * self.world_size + self.rank) * self.share
            yield [(epoch, index) for index in order[first : first + self.share].tolist()]
