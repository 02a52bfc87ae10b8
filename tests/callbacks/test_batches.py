"""Which images a loader's batches hold, and what an item says of itself."""

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, SubsetRandomSampler

from tests.callbacks.conftest import COUNT, Pictures
from zfscope.callbacks.batches import indices_of, label_of, order_of


class Numbers(Dataset):
    """An image of each index that is that index."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return torch.full((3, 1, 1), float(index)), 0


def distributed(rank, **options):
    return DistributedSampler(Numbers(), num_replicas=2, rank=rank, **({"shuffle": False} | options))


def wrapped(rank):
    return DistributedSamplerWrapper(range(COUNT - 1, -1, -1), num_replicas=2, rank=rank, shuffle=False)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 4},
        {"batch_size": 4, "drop_last": True},
        {"batch_size": 3, "sampler": range(1, COUNT, 2)},
        {"batch_size": 3, "sampler": distributed(0)},
        {"batch_size": 4, "sampler": distributed(1)},
        {"batch_size": 4, "sampler": distributed(1, drop_last=True)},
        {"batch_size": 4, "sampler": distributed(1, shuffle=True)},
        {"batch_size": 4, "sampler": wrapped(1)},
        {"batch_sampler": BatchSampler(distributed(1), 4, drop_last=False)},
    ],
    ids=["in order", "drop last", "every other", "rank 0", "rank 1 padded", "rank 1 cut off", "rank 1 shuffled",
         "rank 1 of an own order", "batch sampler"],
)  # fmt: skip
def test_the_indices_of_a_batch_are_those_that_its_loader_reads(options):
    loader = DataLoader(Numbers(), **options)

    order = order_of(loader)

    batches = list(loader)
    assert len(order) == len(batches)
    for number, batch in enumerate(batches):
        assert indices_of(order, batch, number).tolist() == batch[0][:, 0, 0, 0].tolist()


def test_two_ranks_read_all_images_and_the_last_one_begins_again():
    read = []
    for rank in range(2):
        loader = DataLoader(Numbers(), batch_size=4, sampler=distributed(rank))
        read.append(
            [index for number, batch in enumerate(loader) for index in indices_of(order_of(loader), batch, number)]
        )

    assert [int(index) for index in read[0]] == [0, 2, 4, 6, 8, 10]
    assert [int(index) for index in read[1]] == [1, 3, 5, 7, 9, 0]


@pytest.mark.parametrize(
    "options",
    [{"shuffle": True}, {"sampler": SubsetRandomSampler(range(COUNT))}, {"batch_sampler": [[3, 1], [2]]}],
    ids=["shuffled", "subset", "own batches"],
)
def test_where_a_loader_does_not_tell_the_batch_must(options):
    order = order_of(DataLoader(Pictures(parts=3), **options))
    images = torch.zeros(3, 3, 4, 4)

    assert order is None
    assert indices_of(order, (images, torch.zeros(3), torch.tensor([5, 2, 9])), 0).tolist() == [5, 2, 9]
    for batch in [images, (images,), (images, images, torch.zeros(3)), (images, images, torch.tensor([1]))]:
        with pytest.raises(ValueError, match="which are the 3 images of validation batch 7.* give batches"):
            indices_of(order, batch, 7)
    with pytest.raises(ValueError, match="which are the 3 images of validation batch 0"):
        indices_of([[4, 5]], images, 0)  # a collate function that made three of two


@pytest.mark.parametrize(
    ("item", "label"),
    [
        ((0, 4), 4),
        ([0, torch.tensor(2), 7], 2),
        ((0, np.int64(3)), 3),
        ((0, torch.tensor([0.0, 1.0])), None),
        ((0, torch.tensor(1.5)), None),
        ((0, 0.5), None),
        ((0, "dog"), None),
        ((0, True), None),
        ((0,), None),
        (torch.zeros(2, 3), None),
    ],
)
def test_only_a_whole_number_is_a_label(item, label):
    assert label_of(item) == label
