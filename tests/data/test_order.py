"""The order of training images: a function of seed, epoch and index."""

import pytest

from zfscope.data.order import TrainBatches


def batches(size=23, batch_size=4, seed=0, position=0, only=0, **ranks):
    order = TrainBatches(size, batch_size, seed, lambda: position, **ranks)
    order.only = only
    return list(order)


def test_an_epoch_holds_each_image_at_most_once_and_all_but_the_last_few():
    order = [index for batch in batches() for _, index in batch]

    assert len(order) == len(set(order)) == 20
    assert set(order) <= set(range(23))


def test_epochs_and_seeds_have_their_own_order_and_repeat_it():
    assert batches() == batches()
    assert batches(position=5) != batches()
    assert batches(seed=1) != batches()
    assert {epoch for batch in batches(position=5) for epoch, _ in batch} == {1}


def test_a_run_that_goes_on_in_the_middle_meets_the_batches_that_are_left():
    whole = batches() + batches(position=5)

    rest = batches(position=3)

    assert rest == whole[3:8]


def test_ranks_share_each_batch_between_them():
    alone = batches(size=24, batch_size=4)
    first, second = (batches(size=24, batch_size=2, rank=rank, world_size=2) for rank in (0, 1))

    assert [one + two for one, two in zip(first, second, strict=True)] == alone


def test_overfitting_goes_round_the_first_batches_only():
    first = batches(only=2)

    assert first == [first[0], first[1]] * 2 + [first[0]]
    assert batches(only=2, position=5)[0] == first[1]


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match=r"data\.batch_size=30 on 1 device\(s\) is larger than the 23 training images"):
        TrainBatches(23, 30, 0, lambda: 0)
